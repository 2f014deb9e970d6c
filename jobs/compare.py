"""What `ray job submit` runs as `af-pipeline compare`."""

import sys

from af_pipeline.commands import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
