"""Does attention help? Train detectors on drawn shapes with several seeds, and compare them."""
