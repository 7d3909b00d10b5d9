"""Tokens and ids that prompts, labels and checkpoints agree on."""

IGNORE_INDEX = -100  # a label that takes no part in the loss
IMAGE_TOKEN_INDEX = -200  # the input id that an image's tokens replace
DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"
