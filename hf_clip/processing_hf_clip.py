"""`HFCLIPProcessor`: an image processor and a tokenizer behind one call."""

from transformers import BaseImageProcessor, PreTrainedTokenizerBase, ProcessorMixin


class HFCLIPProcessor(ProcessorMixin):
    """CLIP's preprocessing of images, texts, or both at once.

    `processor(images=..., text=..., return_tensors="pt")` gives `pixel_values` (B, 3, H, W) for images and `input_ids`
    (N, longest) for texts; how many there are of each is independent. Options go to the processor that knows them, or
    in `images_kwargs=` and `text_kwargs=`. Raises ValueError where neither is given, or either is an empty list.
    """

    def __init__(self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(image_processor, tokenizer)


__all__ = ["HFCLIPProcessor"]
