"""The two-way transformer for many prompts of one picture, without a picture for each of them.

A prompt changes the picture's tokens by what few rows of softmax weights add to them, and by norms:

    norm(x + A^T V) = r * (x - mean(x)) * g + (r A)^T ((V - mean(V)) * g) + b

with a factor r for each pixel. So the tokens stay a scale times a picture that all prompts share,
plus a few rows times a small matrix (`Factored`). Every product with a prompt's picture becomes one
with the shared picture, whose projections are made once, of the 16 channels of a head, and one with
the rows. The variance that a norm needs is that of a sum: of the shared picture's squares, the rows'
products with each other, and those of both.

Exact but for rounding; `TwoWayTransformer` is the definition. For two layers and 7 tokens it is a
third of the products, and no array of all pixels and channels is made for a prompt.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from samjax.models.layers import LayerNorm
from samjax.models.transformer import Attention, TwoWayTransformer, softmax_parts


class Factored(NamedTuple):
    """A prompt's picture: `scale * shared + rows.T @ values + offset`, by pixel (K) and channel."""

    scale: Float[Array, "*L K"]
    rows: Float[Array, "*L R K"]
    values: Float[Array, "*L R D"]
    offset: Float[Array, "*L D"]


class Look(NamedTuple):
    """The shared picture as an attention has it, channels of each head before pixels. Positions are
    apart, since they are not scaled."""

    keys: Float[Array, "N d K"]
    positions: Float[Array, "N d K"]
    values: Float[Array, "N d K"] | None


class Normed(NamedTuple):
    """The centred shared picture as a norm needs it: the sum of squares of each pixel, and for each
    layer up to this one its products with that layer's output projection and constant."""

    squares: Float[Array, "K"]
    projected: list[Float[Array, "N d K"]]
    constants: list[Float[Array, "K"]]


class SharedPicture:
    """What all prompts share of a picture, and the transformer over them and it.

    A prompt's picture is used in one product, with `kernel`.
    """

    def __init__(
        self,
        transformer: TwoWayTransformer,
        image: Float[Array, "H W D"],
        image_pe: Float[Array, "H W D"],
        kernel: Float[Array, "D E"],
    ):
        self.transformer = transformer
        self.size = image.shape[:2]
        image, image_pe = (x.reshape(-1, x.shape[-1]) for x in (image, image_pe))
        self.layers: list[tuple[Look, Look, Normed]] = []
        projections: list[Float[Array, "N d D"]] = []
        constants: list[Float[Array, "D"]] = []
        offset = jnp.zeros_like(image[0])
        for layer in transformer.layers:
            gather, spread = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            tokens_look = Look(
                _project(gather, gather.k_proj, image), _project(gather, gather.k_proj, image_pe),
                _project(gather, gather.v_proj, image),
            )  # fmt: skip
            picture_looks = Look(
                _project(spread, spread.q_proj, image), _project(spread, spread.q_proj, image_pe),
                None,
            )  # fmt: skip
            projections.append(spread.out_kernel())
            constants.append(offset + spread.bias(spread.out_proj))
            image, projections = _centred(image), [_centred(x) for x in projections]
            constants = [_centred(x) for x in constants]
            normed = Normed(
                jnp.sum(image * image, axis=-1),
                [jnp.einsum("ndD,KD->ndK", x, image) for x in projections],
                [image @ x for x in constants],
            )
            self.layers.append((tokens_look, picture_looks, normed))
            scale, offset = layer.norm4.scale[...], layer.norm4.bias[...]
            image, projections = image * scale, [x * scale for x in projections]
            constants = [x * scale for x in constants]
        final = transformer.final_attn_token_to_image
        self.last = Look(
            _project(final, final.k_proj, image), _project(final, final.k_proj, image_pe),
            _project(final, final.v_proj, image),
        )  # fmt: skip
        self.kernel = kernel
        self.multiplied = image @ kernel

    def __call__(
        self, tokens: Float[Array, "T D"], valid: Bool[Array, "T"], wanted: int | None = None
    ) -> tuple[Float[Array, "t D"], Factored]:
        """As `TwoWayTransformer`, with a factored picture."""
        queries, picture = tokens, None
        spread_values: list[Float[Array, "N T d"]] = []
        for layer, (tokens_look, picture_looks, normed) in zip(
            self.transformer.layers, self.layers, strict=True
        ):
            queries = layer.attend_to_tokens(queries, tokens, valid)
            gathered = _gather(
                layer.cross_attn_token_to_image, queries + tokens, tokens_look, picture
            )
            queries = layer.after_picture(queries, gathered)
            spread = layer.cross_attn_image_to_token
            rows, heads = _spread(spread, queries + tokens, queries, valid, picture_looks, picture)
            spread_values.append(heads)
            picture = _add_and_norm(
                picture, rows, heads, spread_values, spread, layer.norm4, normed
            )
        assert picture is not None
        queries, tokens = queries[:wanted], tokens[:wanted]
        final = self.transformer.final_attn_token_to_image
        gathered = _gather(final, queries + tokens, self.last, picture)
        return self.transformer.norm_final_attn(queries + gathered), picture

    def product(self, picture: Factored) -> Float[Array, "H W E"]:
        """A prompt's picture times the kernel."""
        rest = picture.rows.T @ (picture.values @ self.kernel)
        product = picture.scale[:, None] * self.multiplied + rest + picture.offset @ self.kernel
        return product.reshape(*self.size, -1)


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
        on_rows = jnp.einsum("ntK,RK->ntR", weights, picture.rows)
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
        return _by_head(x, look.keys + look.positions)
    on_rows = jnp.einsum("ntd,Dnd->ntD", x, kernel) @ picture.values.T
    logits = jnp.einsum("ntR,RK->ntK", on_rows, picture.rows)
    return logits + picture.scale * _by_head(x, look.keys) + _by_head(x, look.positions)


def _add_and_norm(
    picture: Factored | None,
    weights: Float[Array, "N T K"],
    heads: Float[Array, "N T d"],
    all_heads: list[Float[Array, "N T d"]],
    attention: Attention,
    norm: LayerNorm,
    normed: Normed,
) -> Factored:
    """The norm of a picture to which an attention's output is added."""
    num_heads, number, _ = weights.shape
    values = jnp.einsum("ntd,ndD->ntD", heads, attention.out_kernel())
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
    """Products of few channels, which XLA:CPU does best with what comes after them."""
    return jnp.einsum("ntd,ndK->ntK", x, y)


def _project(attention: Attention, projection, x: Float[Array, "K D"]) -> Float[Array, "N d K"]:
    return jnp.einsum("Dnd,KD->ndK", attention.kernel(projection), x)


def _centred(x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
    return x - jnp.mean(x, axis=-1, keepdims=True)
