"""What `ray job submit` runs as `af-pipeline tune`."""

import sys

from af_pipeline.commands import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
