"""Linear algebra that may stand in any `jax.vmap` and loop, and never waits for itself on CPUs.

jaxlib 0.10 cuts a large batch of matrices into pieces for the threads that run the program, and
waits for them on one of these threads. Batches that are solved at the same time, two on two cores,
can so hold every thread, and wait for ever. Each call of LAPACK here gets too few matrices to be
cut; on other devices a batch stays whole.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.scipy import linalg
from jaxtyping import Array, Complex, Float

CUT_WORK = 200_000  # in multiplications as jaxlib counts them: batches of less are never cut


def uncut(function, cost: int = 1):
  """`function` of a matrix and perhaps of more arrays, whose batches jaxlib does not cut.

  The result has no derivative in reverse mode.

  Args:
    function: calls LAPACK on the matrix.
    cost: of one call, as jaxlib counts it, in rows x columns x the smaller of both.
  """

  @custom_vmap
  def batch(*arrays):
    largest = max(array[0].size for array in arrays)
    work = cost * largest * min(arrays[0].shape[1:])
    fit = max(1, CUT_WORK // max(1, work))
    whole = jax.vmap(function)
    if len(arrays[0]) <= fit:
      return whole(*arrays)

    def in_pieces(*arrays):
      return lax.map(lambda row: function(*row), arrays, batch_size=fit)

    return lax.platform_dependent(*arrays, cpu=in_pieces, default=whole)

  @batch.def_vmap
  def _(size, is_batched, *arrays):
    pairs = zip(arrays, is_batched, strict=True)
    arrays = [a if batched else jnp.broadcast_to(a, (size, *a.shape)) for a, batched in pairs]
    count = arrays[0].shape[1]
    found = batch(*(array.reshape(size * count, *array.shape[2:]) for array in arrays))
    found = jax.tree.map(lambda leaf: leaf.reshape(size, count, *leaf.shape[1:]), found)
    return found, jax.tree.map(lambda _: True, found)

  def one(*arrays):
    return jax.tree.map(lambda leaf: leaf[0], batch(*(array[None] for array in arrays)))

  return one


_solve = uncut(jnp.linalg.solve)
_pseudo_inverse = uncut(jnp.linalg.pinv, cost=10)
_spectral_norm = uncut(lambda matrix: jnp.linalg.norm(matrix, 2), cost=10)
_least_squares = uncut(lambda matrix, right: jnp.linalg.lstsq(matrix, right)[0], cost=10)
_eigenvalues = uncut(jnp.linalg.eigvals, cost=10)
_log_determinant = uncut(lambda matrix: jnp.linalg.slogdet(matrix)[1])


@uncut
def _inverse_norms(matrix, rows):
  factor = jnp.linalg.cholesky(matrix)
  return jnp.sqrt((linalg.solve_triangular(factor, rows.T, lower=True) ** 2).sum(axis=0))


def solve(matrix: Float[Array, 'N N'], right: Float[Array, 'N *M']) -> Float[Array, 'N *M']:
  """x with matrix x = right; can be differentiated by both, in both modes."""
  held = lax.stop_gradient(matrix)
  return lax.custom_linear_solve(
    lambda x: matrix @ x,
    right,
    lambda _, right: _solve(held, right),
    lambda _, right: _solve(held.T, right),
  )


def least_squares(matrix: Float[Array, 'N M'], right: Float[Array, 'N']) -> Float[Array, 'M']:
  """The x of least |x| among those with the least |matrix x - right|."""
  return _least_squares(matrix, right)


def inverse_norms(matrix: Float[Array, 'N N'], rows: Float[Array, '*B N']) -> Float[Array, '*B']:
  """The norm of each row in the inverse of a positive definite matrix."""
  return _inverse_norms(matrix, rows.reshape(-1, rows.shape[-1])).reshape(rows.shape[:-1])


def pseudo_inverse(matrix: Float[Array, 'N M']) -> Float[Array, 'M N']:
  """That of Moore and Penrose."""
  return _pseudo_inverse(matrix)


def spectral_norm(matrix: Float[Array, 'N M']) -> Float[Array, '']:
  """The largest singular value."""
  return _spectral_norm(matrix)


def eigenvalues(matrix: Float[Array, 'N N']) -> Complex[Array, 'N']:
  """In no order."""
  return _eigenvalues(matrix)


def log_determinant(matrix: Float[Array, 'N N']) -> Float[Array, '']:
  """log |det|."""
  return _log_determinant(matrix)
