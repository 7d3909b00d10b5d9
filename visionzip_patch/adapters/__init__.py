"""Families of transformers' models: a file each, and a line for each model type in `ADAPTERS`.

To add one, write a class in a file beside the others: made of a model, it is a `visionzip_patch.reducer.Tower`. To set
its `reducer` is to have the model take what its processor returns, and give its language model fewer tokens; None
undoes that. `shortening`, `wrapping`, `caches` and `generation` have what families share, and know none.
"""

# By `config.model_type`: "module:class", imported when such a model is met, because they need transformers.
ADAPTERS = {
    "llava": "visionzip_patch.adapters.hf_llava:HFLlavaTower",
    "llava_next": "visionzip_patch.adapters.hf_llava:HFLlavaTower",
}
