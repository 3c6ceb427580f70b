"""Self-supervised training of `tiny`: from images alone, without labels; `python -m recipes.pretrain`.

Two views are cut from each image, and the encoder learns to describe both alike: the whole views by a joint-embedding
loss on the pooled output, and places that both show, hidden in one of them at times, by the same loss on the tokens.
"""
