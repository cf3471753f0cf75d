"""The two-way transformer for many prompts of one picture, without a picture for each of them.

A prompt changes the picture's tokens by what few rows of softmax weights add to them, and by norms:

    norm(x + A^T V) = r * (x - mean(x)) * g + (r A)^T ((V - mean(V)) * g) + b

with a factor r for each pixel. So the tokens stay a scale times a picture that all prompts share,
plus a few rows times a small matrix (`Factored`). Every product with a prompt's picture becomes
one with the shared picture, whose projections are made once, of the 16 channels of a head, and one
with the rows. The variance that a norm needs is that of a sum: of the shared picture's squares, of
the rows' products with each other, and of both's.

Exact but for rounding; `TwoWayTransformer` is the definition. For two layers and 7 tokens it is a
third of the products, and no array of all pixels and channels is made for a prompt.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from samjax.models.layers import LayerNorm
from samjax.models.transformer import Attention, TwoWayTransformer, softmax_parts

ROWS = 16
"""XLA:CPU multiplies with so many rows at once, and takes longer for 56 than for 64."""


class Factored(NamedTuple):
    """A prompt's picture: `scale * shared + rows.T @ values + offset`, by pixel (K) and channel."""

    scale: Float[Array, "*L K"]
    rows: Float[Array, "*L R K"]
    values: Float[Array, "*L R D"]
    offset: Float[Array, "*L D"]


class Look(NamedTuple):
    """The shared picture as an attention has it, channels of each head before pixels. Positions are
    apart where the picture is scaled, since they are not."""

    keys: Float[Array, "*L N d K"]
    positions: Float[Array, "*L N d K"] | None
    values: Float[Array, "*L N d K"] | None


class Normed(NamedTuple):
    """The centred shared picture as a norm needs it: the sum of squares of each pixel, and for each
    layer up to this one its products with that layer's output projection and constant."""

    squares: Float[Array, "*L K"]
    projected: tuple[Float[Array, "*L N d K"], ...]
    constants: tuple[Float[Array, "*L K"], ...]


class SharedLayer(NamedTuple):
    """What a layer of the transformer needs of the picture."""

    tokens_look: Look
    picture_looks: Look
    normed: Normed


class SharedPicture(NamedTuple):
    """What all prompts share of a picture: what its products with the transformer's matrices are,
    and `multiplied`, its product with the one matrix that a prompt's picture is multiplied with
    after the transformer."""

    layers: tuple[SharedLayer, ...]
    last: Look
    multiplied: Float[Array, "*L H W E"]


def share_picture(
    transformer: TwoWayTransformer,
    image: Float[Array, "H W D"],
    image_pe: Float[Array, "H W D"],
    kernel: Float[Array, "D E"],
) -> SharedPicture:
    """For `attend` and `product`. Norms are linear but for the factors, which are a prompt's own:
    so all of it is one product with the picture, and one with the positions."""
    size, (width, _) = image.shape[:2], kernel.shape
    image, image_pe = (x.reshape(-1, width) for x in (image, image_pe))
    norms = [layer.norm4 for layer in transformer.layers]
    of_image, of_positions = _Products(), _Products()

    def after_norms(kernel: Float[Array, "D ..."], number: int) -> Float[Array, "D ..."]:
        """The matrix that does the same before so many norms."""
        for norm in reversed(norms[:number]):
            kernel = _centred(kernel * _column(norm.scale[...], kernel), axis=0)
        return kernel

    def look(attention: Attention, number: int, *projections: nnx.Linear) -> Callable[[], Look]:
        kernels = [attention.kernel(projection) for projection in projections]
        made = [of_image.add(after_norms(k, number)) for k in kernels]
        positions = of_positions.add(kernels[0])

        def finished() -> Look:
            keys, values = made[0](), made[1]() if len(made) > 1 else None
            if number == 0:
                return Look(keys + positions(), None, values)
            return Look(keys, positions(), values)

        return finished

    layers = []
    outputs: list[Float[Array, "D N d"]] = []
    constants: list[Array] = []
    offset = jnp.zeros_like(image[0])
    for number, layer in enumerate(transformer.layers):
        gather, spread = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        looks = (
            look(gather, number, gather.k_proj, gather.v_proj),
            look(spread, number, spread.q_proj),
        )
        outputs = [
            _centred(x, axis=0) for x in (*outputs, jnp.moveaxis(spread.out_kernel(), -1, 0))
        ]
        constants = [
            _centred(x, axis=0) for x in (*constants, offset + spread.bias(spread.out_proj))
        ]
        products = [
            [of_image.add(after_norms(x, number)) for x in some] for some in (outputs, constants)
        ]
        layers.append((*looks, products))
        outputs = [x * _column(layer.norm4.scale[...], x) for x in outputs]
        constants = [x * layer.norm4.scale[...] for x in constants]
        offset = layer.norm4.bias[...]
    final = transformer.final_attn_token_to_image
    last = look(final, len(norms), final.k_proj, final.v_proj)
    multiplied = image @ after_norms(kernel, len(norms))
    of_image.multiply(image)
    of_positions.multiply(image_pe)

    shared = []
    for norm, (tokens_look, picture_looks, products) in zip(norms, layers, strict=True):
        image = _centred(image)
        projected, constant = (tuple(x() for x in some) for some in products)
        normed = Normed(jnp.sum(image * image, axis=-1), projected, constant)
        shared.append(SharedLayer(tokens_look(), picture_looks(), normed))
        image = image * norm.scale[...]
    return SharedPicture(tuple(shared), last(), multiplied.reshape(*size, -1))


class _Products:
    """Of one array with many matrices, as a single product."""

    def __init__(self) -> None:
        self._kernels: list[Float[Array, "D ..."]] = []

    def add(self, kernel: Float[Array, "D ..."]) -> Callable[[], Float[Array, "... K"]]:
        """What will return this matrix's product, pixels last."""
        self._kernels.append(kernel)
        index = len(self._kernels) - 1
        return lambda: self._made[index]

    def multiply(self, x: Float[Array, "K D"]) -> None:
        flat = [kernel.reshape(len(kernel), -1) for kernel in self._kernels]
        whole = jax.lax.dot_general(jnp.concatenate(flat, axis=1), x, (((0,), (1,)), ((), ())))
        ends = np.cumsum([kernel.shape[1] for kernel in flat])[:-1]
        parts = jnp.split(whole, ends)
        self._made = [
            part.reshape(*kernel.shape[1:], -1)
            for part, kernel in zip(parts, self._kernels, strict=True)
        ]


def attend(
    transformer: TwoWayTransformer,
    shared: SharedPicture,
    tokens: Float[Array, "T D"],
    valid: Bool[Array, "T"],
    wanted: int | None = None,
) -> tuple[Float[Array, "t D"], Factored]:
    """As `TwoWayTransformer`, with a factored picture."""
    queries, picture = tokens, None
    all_heads: list[Float[Array, "N T d"]] = []
    for layer, of_layer in zip(transformer.layers, shared.layers, strict=True):
        queries = layer.attend_to_tokens(queries, tokens, valid)
        gather, spread = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        gathered = _gather(gather, queries + tokens, of_layer.tokens_look, picture)
        queries = layer.after_picture(queries, gathered)
        weights, heads = _spread(
            spread, queries + tokens, queries, valid, of_layer.picture_looks, picture
        )
        all_heads.append(heads)
        picture = _add_and_norm(picture, weights, all_heads, spread, layer.norm4, of_layer.normed)
    assert picture is not None
    queries, tokens = queries[:wanted], tokens[:wanted]
    final = transformer.final_attn_token_to_image
    gathered = _gather(final, queries + tokens, shared.last, picture)
    return transformer.norm_final_attn(queries + gathered), picture


def product(
    shared: SharedPicture, picture: Factored, kernel: Float[Array, "D E"]
) -> Float[Array, "H W E"]:
    """A prompt's picture times the matrix that `shared` was made with."""
    rows = picture.rows.T @ (picture.values @ kernel) + picture.offset @ kernel
    rows = rows.reshape(shared.multiplied.shape)
    return picture.scale.reshape(*rows.shape[:2], 1) * shared.multiplied + rows


def _gather(
    attention: Attention, q: Float[Array, "T D"], look: Look, picture: Factored | None
) -> Float[Array, "T D"]:
    """Tokens look at the picture. What adds the same to all logits of a token is left out."""
    q_NTd = attention.heads(attention.q_proj(q)).swapaxes(0, 1)
    q_NTd = q_NTd / q_NTd.shape[-1] ** 0.5
    logits = _logits(q_NTd, attention.kernel(attention.k_proj), look, picture)
    weights, totals = softmax_parts(logits.reshape(-1, logits.shape[-1]))
    weights, totals = weights.reshape(logits.shape), totals.reshape(logits.shape[:2])
    assert look.values is not None
    if picture is None:
        context = jnp.einsum("ntK,ndK->ntd", weights, look.values)
        context = context / totals[..., None]
    else:
        context = jnp.einsum("ntK,ndK->ntd", weights * picture.scale, look.values)
        number = len(picture.rows)
        rows = jnp.pad(picture.rows, ((0, -number % ROWS), (0, 0)))
        on_rows = jnp.einsum("ntK,RK->ntR", weights, rows)[..., :number]
        kernel = attention.kernel(attention.v_proj)
        context += jnp.einsum("ntD,Dnd->ntd", on_rows @ picture.values, kernel)
        context = context / totals[..., None]
        context += jnp.einsum("D,Dnd->nd", picture.offset, kernel)[:, None]
    context = context.swapaxes(0, 1).reshape(len(q), -1)
    return attention.out_proj(context + attention.bias(attention.v_proj))


def _spread(
    attention: Attention,
    k: Float[Array, "T D"],
    v: Float[Array, "T D"],
    valid: Bool[Array, "T"],
    look: Look,
    picture: Factored | None,
) -> tuple[Float[Array, "N T K"], Float[Array, "N T d"]]:
    """The picture looks at tokens: its weights, and the values that these are of."""
    k_NTd = attention.heads(attention.k_proj(k)).swapaxes(0, 1)
    k_NTd = k_NTd / k_NTd.shape[-1] ** 0.5
    kernel = attention.kernel(attention.q_proj)
    logits = _logits(k_NTd, kernel, look, picture)
    same = attention.heads(attention.bias(attention.q_proj)[None])[0]
    if picture is not None:
        same = same + jnp.einsum("D,Dnd->nd", picture.offset, kernel)
    logits = logits + jnp.einsum("ntd,nd->nt", k_NTd, same)[..., None]
    logits = jnp.where(valid[:, None], logits, -jnp.inf)
    v_NTd = attention.heads(attention.v_proj(v)).swapaxes(0, 1)
    return jax.nn.softmax(logits, axis=1), v_NTd


def _logits(
    x: Float[Array, "N T d"], kernel: Float[Array, "D N d"], look: Look, picture: Factored | None
) -> Float[Array, "N T K"]:
    """Of the tokens' heads with those of the picture, up to a constant."""
    if picture is None:
        return _by_head(x, look.keys)
    assert look.positions is not None
    on_rows = jnp.einsum("ntd,Dnd->ntD", x, kernel) @ picture.values.T
    logits = jnp.einsum("ntR,RK->ntK", on_rows, picture.rows)
    return logits + picture.scale * _by_head(x, look.keys) + _by_head(x, look.positions)


def _add_and_norm(
    picture: Factored | None,
    weights: Float[Array, "N T K"],
    all_heads: list[Float[Array, "N T d"]],
    attention: Attention,
    norm: LayerNorm,
    normed: Normed,
) -> Factored:
    """The norm of a picture to which an attention's output is added."""
    num_heads, number, _ = weights.shape
    values = jnp.einsum("ntd,ndD->ntD", all_heads[-1], attention.out_kernel())
    constant = attention.bias(attention.out_proj)
    if picture is not None:
        constant = constant + picture.offset
    # A pixel's weights of a head sum up to one.
    values = values.at[0].add(constant).reshape(num_heads * number, -1)
    rows = weights.reshape(num_heads * number, -1)
    scale = jnp.ones_like(rows[0])
    if picture is not None:
        values = jnp.concatenate([picture.values, values])
        rows = jnp.concatenate([picture.rows, rows])
        scale = picture.scale
    values = _centred(values)
    by_layer = (-1, num_heads, number, rows.shape[-1])
    crossed, of_layers = (values @ values.T) @ rows, []
    constants = jnp.zeros_like(scale)
    for of_layer, x, projected, const in zip(
        rows.reshape(by_layer), all_heads, normed.projected, normed.constants, strict=True
    ):
        of_layers.append(_by_head(x, projected))
        constants += jnp.sum(of_layer[0], axis=0) * const
    crossed = crossed.reshape(by_layer) + 2.0 * scale * jnp.stack(of_layers)
    squares = jax.lax.optimization_barrier(jnp.sum(rows * crossed.reshape(rows.shape), axis=0))
    squares += 2.0 * scale * constants + scale * scale * normed.squares
    factor = jax.lax.rsqrt(squares / values.shape[-1] + norm.epsilon)
    return Factored(scale * factor, rows * factor, values * norm.scale[...], norm.bias[...])


def _by_head(x: Float[Array, "N T d"], y: Float[Array, "N d K"]) -> Float[Array, "N T K"]:
    """Products of the few channels of each head. Under `jax.vmap` all prompts' go together."""
    return jnp.einsum("ntd,ndK->ntK", x, y)


def _centred(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    return x - jnp.mean(x, axis=axis, keepdims=True)


def _column(x: Float[Array, "D"], like: Float[Array, "D ..."]) -> Float[Array, "D ..."]:
    """With axes of one, for every column of another array."""
    return x.reshape(-1, *[1] * (like.ndim - 1))
