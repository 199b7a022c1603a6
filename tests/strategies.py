"""What property tests of several rooms draw."""

from hypothesis import strategies as st

from pyannote_prune import PrunedWavLMConfig

# sub-layers are there more often than not
_MOSTLY = st.sampled_from([True, True, True, False])


@st.composite
def shapes(draw, channels=(1, 9), **values):
    """Small backbones, pruned in every way

    `channels` are the least and greatest number of a convolution; `values` are taken as they are, or drawn where they
    are strategies.
    """
    num_layers, num_heads = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))

    def per_layer(one):
        return draw(st.lists(one, min_size=num_layers, max_size=num_layers))

    drawn = {
        "num_conv_pos_embeddings": st.integers(1, 17),
        "num_conv_pos_embedding_groups": st.sampled_from([1, 2, 4]),
        **values,
    }
    return PrunedWavLMConfig(
        hidden_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        remaining_heads=per_layer(st.lists(st.integers(0, num_heads - 1), unique=True).map(sorted)),
        has_attention=per_layer(_MOSTLY),
        has_feed_forward=per_layer(_MOSTLY),
        intermediate_sizes=per_layer(st.integers(0, 20)),
        conv_dim=draw(st.lists(st.integers(*channels), min_size=7, max_size=7)),
        conv_bias=draw(st.booleans()),
        feat_extract_norm=draw(st.sampled_from(["group", "layer"])),
        do_stable_layer_norm=draw(st.booleans()),
        **{name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in drawn.items()},
    )
