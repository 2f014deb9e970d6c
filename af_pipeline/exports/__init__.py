"""Detections in the formats of others."""

# The writers: (run, where to write, options of jobs/export.py) -> a line that says what was done.
EXPORTERS = {
    "coco": "af_pipeline.exports.coco:write",
    "csv": "af_pipeline.exports.csv:write",
}
