"""Data sets that are drawn, in COCO's format: what trains where COCO is not at hand."""
