"""What `ray job submit` runs as `af-pipeline distill`."""

import sys

from af_pipeline.commands import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
