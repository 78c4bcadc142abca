from .feature_attention import FeatureAttention
from .insert import insert_feature_attention

__all__ = ['FeatureAttention', 'insert_feature_attention']
