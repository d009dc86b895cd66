"""What the modules of several libraries share: their sizes, and where their weights are."""

import jax


def sizes(name, p):
    """The arguments of a work's module, read from the baseline's weights `p`."""
    if name == "mlp":
        return ([p[0]["w"].shape[0], *(layer["w"].shape[1] for layer in p)],)
    if name == "cnn":
        *convs, head = p
        return [convs[0]["w"].shape[2], *(conv["w"].shape[3] for conv in convs)], head["w"].shape
    if name == "resnet":
        blocks = [block["first"]["w"].shape[2:] for block in p["blocks"]]
        return p["stem"]["w"].shape[2:], blocks, p["head"]["w"].shape
    if name == "lstm":
        return p["cell"]["wx"].shape[0], p["head"]["w"].shape
    heads = 12 if name == "gpt2-124m" else 4
    return len(p["embedding"]), *p["positions"].shape, heads, len(p["blocks"])


def named(name, m, cell, weight="weight", scale="weight", table="weight"):
    """The leaves of the module m in the structure of the baseline's weights.

    cell: returns those of an LSTM's cell. The others are what the library calls its weights.
    """
    def affine(m):
        return {"w": getattr(m, weight), "b": m.bias}

    def norm(m):
        return {"scale": getattr(m, scale), "bias": m.bias}

    def conv_norm(m):
        return {"w": getattr(m.conv, weight), **norm(m.norm)}

    def parts(block):
        of = {"first": conv_norm, "second": conv_norm, "shortcut": conv_norm, "norm1": norm,
              "qkv": affine, "out": affine, "norm2": norm, "up": affine, "down": affine}
        found = {part: getattr(block, part, None) for part in of}
        return {part: of[part](one) for part, one in found.items() if one is not None}

    if name == "mlp":
        return [affine(layer) for layer in each(m.layers)]
    if name == "cnn":
        return [*map(affine, each(m.convs)), affine(m.head)]
    if name == "lstm":
        return {"cell": cell(m), "head": affine(m.head)}
    blocks = [parts(block) for block in each(m.blocks)]
    if name == "resnet":
        return {"stem": conv_norm(m.stem), "blocks": blocks, "head": affine(m.head)}
    tables = {part: getattr(getattr(m, part), table) for part in ("embedding", "positions")}
    return {**tables, "blocks": blocks, "norm": norm(m.norm)}


def each(group):
    return group.values() if hasattr(group, "values") else group


def statistics(model, carried):
    """Yields each module with running statistics, and those that it gets."""
    yield model.stem, carried["stem"]
    for block, stats in zip(each(model.blocks), carried["blocks"]):
        for part in stats:
            yield getattr(block, part), stats[part]


def outputs_first(name, tree):
    """Weights in the layout of Equinox and PyTorch: outputs first, images channels first."""
    def turn(path, a):
        return a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T if is_weight(path) else a

    return jax.tree_util.tree_map_with_path(turn, flat_order(name, tree))


def outputs_last(name, tree):
    """The inverse of `outputs_first`; a bias of three axes, Equinox's of a convolution, has one."""
    def turn(path, a):
        if a.ndim == 4:
            return a.transpose(2, 3, 1, 0)
        return a.ravel() if a.ndim == 3 else a.T if is_weight(path) else a

    return flat_order(name, jax.tree_util.tree_map_with_path(turn, tree), back=True)


def flat_order(name, tree, back=False):
    """The rows of a cnn's head in the order of an image flattened channels first; or back."""
    if name != "cnn":
        return tree
    *convs, head = tree
    channels, outputs = convs[-1]["w"].shape[-1], head["w"].shape[-1]
    cube = head["w"].reshape((channels, -1, outputs) if back else (-1, channels, outputs))
    return [*convs, {**head, "w": cube.swapaxes(0, 1).reshape(head["w"].shape)}]


def is_weight(path):
    return getattr(path[-1], "key", "") in ("w", "wx", "wh")
