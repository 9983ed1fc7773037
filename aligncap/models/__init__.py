"""The model and where its weights come from. Importing registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from aligncap.models.configuration_aligncap import AlignCapConfig
from aligncap.models.modeling_aligncap import AlignCapForConditionalGeneration, AlignCapModel
from aligncap.models.processing_aligncap import AlignCapProcessor

AutoConfig.register("aligncap", AlignCapConfig)
AutoModel.register(AlignCapConfig, AlignCapModel)
AutoModelForCausalLM.register(AlignCapConfig, AlignCapForConditionalGeneration)
AutoModelForMultimodalLM.register(AlignCapConfig, AlignCapForConditionalGeneration)
AutoProcessor.register(AlignCapConfig, AlignCapProcessor)

__all__ = ["AlignCapConfig", "AlignCapForConditionalGeneration", "AlignCapModel", "AlignCapProcessor"]
