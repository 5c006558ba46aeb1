"""The stages of a cell (pretrain, backdoor, purify, finetune) and the store that keeps them."""
