"""Starting weights with copying built in: a previous-token head and four induction heads.

A model of this size learns to copy from its prompt late: in the few million tokens that one core
affords it learns the phrases and ignores the question. The circuit that copies is known (A
Mathematical Framework for Transformer Circuits, Elhage et al. 2021; In-context Learning and
Induction Heads, Olsson et al. 2022): a head that moves each token's content one position on, and a
head that looks for the present token in those moved contents and reads what stands there. Both can
be written down for a Llama:

- every embedding shares one constant, ``x[0]``. Through it, head 0 of layer 0 compares positions
  only: its keys are turned by one position, so that the rotary product is largest at distance 1;
- it moves 32 coordinates of the content into a subspace the embeddings leave empty;
- heads 0 to 3 of layer 1 match content against moved content, in the slow rotary planes, which
  hardly depend on distance, and add the content found to the residual stream.

Training keeps and sharpens them; nothing is frozen.
"""

import torch
from torch import Tensor

from real_backend.training.core import Llama

SIZE = 32  # of a head
FAST, SLOW = range(5), range(6, 16)  # rotary planes: the first compare positions, the last content


def _plant_previous_token(model: Llama, read: Tensor, write: Tensor) -> None:
    """Head 0 of layer 0; ``read`` and ``write`` are orthonormal columns, (hidden, 32) each."""
    head = model.model.attention(0)
    head.q_proj.weight[:SIZE] *= 0.1
    head.k_proj.weight[:SIZE] *= 0.1
    half = SIZE // 2
    for plane in FAST:
        angle = torch.tensor(model.shape.rope_theta ** (-plane / half))
        head.q_proj.weight[plane, 0] = 0.9
        head.k_proj.weight[plane, 0] = 0.9 * angle.cos()
        head.k_proj.weight[half + plane, 0] = 0.9 * angle.sin()
    head.v_proj.weight[:SIZE] = read.T
    head.o_proj.weight[:, :SIZE] = 0.0625 * write


def _plant_induction(model: Llama, read: Tensor, moved: Tensor, blocks: list[Tensor]) -> None:
    """One head of layer 1 for each block of content directions, columns (hidden, at most 32)."""
    head = model.model.attention(1)
    rows = torch.tensor([*SLOW, *(SIZE // 2 + plane for plane in SLOW)])
    for index, block in enumerate(blocks):
        first, width = index * SIZE, block.shape[1]
        head.q_proj.weight[first + rows] = 1.75 * read.T[: len(rows)]
        head.k_proj.weight[first + rows] = 1.75 * moved.T[: len(rows)]
        head.v_proj.weight[first : first + width] = block.T
        head.o_proj.weight[:, first : first + width] = 0.065 * block


def plant_copying(model: Llama, seed: int) -> None:
    """Overwrite the starting weights of the heads named above.

    Raises ValueError for fewer than 2 layers or 3 heads, or heads not of size 32.
    """
    hidden = model.shape.hidden
    if model.shape.layers < 2 or model.shape.heads < 3 or hidden != SIZE * model.shape.heads:
        raise ValueError(f"copying needs 2 layers and 3 heads of {SIZE}: {model.shape}")
    generator = torch.Generator().manual_seed(seed)
    basis = torch.zeros(hidden, hidden - 1)  # orthonormal columns, without the constant's axis
    basis[1:] = torch.linalg.qr(torch.randn(hidden - 1, hidden - 1, generator=generator)).Q
    read, moved = basis[:, :SIZE], basis[:, SIZE : 2 * SIZE]
    blocks = [read, *torch.split(basis[:, 2 * SIZE :], SIZE, dim=1)]
    with torch.no_grad():
        embedding = model.embedding()
        embedding -= embedding @ moved @ moved.T
        embedding[:, 0] = 0.02 * hidden**0.5
        _plant_previous_token(model, read, moved)
        _plant_induction(model, read, moved, blocks)
