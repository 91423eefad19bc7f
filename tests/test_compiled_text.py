"""The reader of compiled programs, on a text with a known answer."""

import pytest

from tests import compiled_text

TEXT = """HloModule jit_f, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: bf16[2,4]) -> bf16[16,4] {
  %p = bf16[2,4]{1,0} parameter(0)
  ROOT %gathered = bf16[16,4]{1,0} all-gather(%p), dimensions={0}
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %called = bf16[16,4]{1,0} call(%p), to_apply=%inner
  ROOT %next = (s32[], f32[8,4]{1,0}) tuple(%i, %x)
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %reduced = (f32[8,4]{1,0}, s32[3]{0}) all-reduce-start(%x, %n), to_apply=%add
  ROOT %loop = (s32[], f32[8,4]{1,0}) while(%x), condition=%condition, body=%body
}
"""


def test_instructions_of_a_known_text():
  gathered, reduced = compiled_text.collectives(TEXT)
  assert gathered[:3] == (True, 'all-gather', 16 * 4 * 2)
  assert reduced[:3] == (False, 'all-reduce', 8 * 4 * 4 + 3 * 4)
  assert compiled_text.collectives(TEXT, in_loop=True) == [gathered]
  assert compiled_text.collectives(TEXT, in_loop=False) == [reduced]
  assert compiled_text.shapes(gathered) == [('bf16', (16, 4))]
  assert compiled_text.shapes(reduced) == [('f32', (8, 4)), ('s32', (3,))]
  assert len(compiled_text.instructions(TEXT)) == 13


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [('f32[]', 4), ('pred[7]{0}', 7), ('(bf16[2,3]{1,0}, u8[5]{0})', 17), ('s64[2,0]', 0)],
)
def test_size_of_a_type(kind, expected):
  assert compiled_text.size(kind) == expected
