"""What the tables are measured on: ImageNet (Tables 1 and 2) and COCO (Tables 3 and 4)."""
