from .shapes import CLASSES, generate_shapes

__all__ = ['CLASSES', 'generate_shapes']
