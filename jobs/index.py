"""What `ray job submit` runs as `af-pipeline index`."""

import sys

from af_pipeline.commands import main

if __name__ == "__main__":
    sys.exit(main(["index", *sys.argv[1:]]))
