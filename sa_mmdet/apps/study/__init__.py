"""Whether attention helps: detectors trained on drawn shapes, with several seeds, compared."""
