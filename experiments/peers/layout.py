"""What the modules of several libraries share: their sizes, and where their weights are."""


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


def named(name, m):
    """The leaves of a module of Equinox or PyTorch in the structure of the baseline's weights."""
    def affine(m):
        return {"w": m.weight, "b": m.bias}

    def norm(m):
        return {"scale": m.weight, "bias": m.bias}

    def conv_norm(m):
        return {"w": m.conv.weight, **norm(m.norm)}

    def parts(block):
        of = {"first": conv_norm, "second": conv_norm, "shortcut": conv_norm, "norm1": norm,
              "qkv": affine, "out": affine, "norm2": norm, "up": affine, "down": affine}
        found = {part: getattr(block, part, None) for part in of}
        return {part: of[part](one) for part, one in found.items() if one is not None}

    if name == "mlp":
        return [affine(layer) for layer in m.layers]
    if name == "cnn":
        return [*map(affine, m.convs), affine(m.head)]
    if name == "lstm":
        return {"cell": m.cell_weights(), "head": affine(m.head)}
    blocks = [parts(block) for block in m.blocks]
    if name == "resnet":
        return {"stem": conv_norm(m.stem), "blocks": blocks, "head": affine(m.head)}
    return {"embedding": m.embedding.weight, "positions": m.positions.weight, "blocks": blocks,
            "norm": norm(m.norm)}


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
