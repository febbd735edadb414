"""Sizes of the published Wan 2.1 codec."""

VAE_CONFIG = {
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "z_dim": 16,
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}
