"""What `ray job submit` runs as `af-pipeline export`."""

import sys

from af_pipeline.commands import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
