"""What `ray job submit` runs as `af-pipeline evaluate`."""

import sys

from af_pipeline.commands import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
