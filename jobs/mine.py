"""What `ray job submit` runs as `af-pipeline mine`."""

import sys

from af_pipeline.commands import main

if __name__ == "__main__":
    sys.exit(main(["mine", *sys.argv[1:]]))
