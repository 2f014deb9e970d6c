"""What `ray job submit` runs as `af-pipeline train`."""

import sys

from af_pipeline.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
