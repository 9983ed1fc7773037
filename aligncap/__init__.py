"""AlignCap: speech emotion captioning, from a corpus folder to a scored report.

Importing it registers the model with transformers' Auto classes.
"""

from aligncap.models import AlignCapConfig, AlignCapForConditionalGeneration, AlignCapModel, AlignCapProcessor
from aligncap.models.captioner import Captioner

__version__ = "0.1.0"
__all__ = ["AlignCapConfig", "AlignCapForConditionalGeneration", "AlignCapModel", "AlignCapProcessor", "Captioner"]
