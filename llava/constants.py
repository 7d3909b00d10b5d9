"""Tokens and ids that prompts, labels and checkpoints agree on; what servers written for LLaVA share."""

IGNORE_INDEX = -100  # a label that takes no part in the loss
IMAGE_TOKEN_INDEX = -200  # the input id that an image's tokens replace
DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"

# Fields of a config.json in which training programs record their prompt template.
TEMPLATE_FIELDS = ("conv_mode", "conv_template", "conversation_template", "conv_version", "version")

# What servers written for upstream LLaVA read.
LOGDIR = "."  # where `llava.utils.build_logger` writes
WORKER_HEART_BEAT_INTERVAL = 15  # seconds between two signs of life of a worker
CONTROLLER_HEART_BEAT_EXPIRATION = 30  # seconds without one after which a controller gives a worker up
