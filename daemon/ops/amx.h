/* What the files of the amx engine share: tiles, and the two ways to arrange bf16 for them. Only
 * files compiled for AMX and AVX-512 include this.
 *
 * A product of tiles is C [16][16] += A [16][32] B [32][16], C in fp32. A is 16 rows of 32 values
 * (64 bytes) at any distance. B holds its 32 rows in pairs: 16 lines of [16 columns][2 rows], 1
 * KiB. The engine works in squares of 32 x 32: tiles 0-3 are C (row-major), 4-5 A, 6-7 B. Four
 * products for four loads keep the multiplier busy (16 cycles a product, 8 a load) as long as one
 * operand stays in the first cache and the other streams from the second.
 *
 * Tile registers are per thread: every parallel region begins with amx_begin and ends with amx_end,
 * so that no thread carries 8 KiB of tiles through its context switches. */
#pragma once

#include "daemon/ops/engine.h"

#include <immintrin.h>
#include <string.h>

typedef uint16_t bf16;

#define TILE_ELEMS 512                /* bf16 of a tile */
#define TILE_LINE 32                  /* bf16 of its line */
#define SQUARE_ELEMS (2 * TILE_ELEMS) /* bf16 of a 32 x 32 square */
#define SQUARE 32

static inline void amx_begin(void)
{
	/* palette 1; 8 tiles of 16 rows of 64 bytes */
	_Alignas(64) struct {
		uint8_t palette, start_row, reserved[14];
		uint16_t row_bytes[16];
		uint8_t rows[16];
	} config = {.palette = 1};
	for (int i = 0; i < 8; i++) {
		config.row_bytes[i] = 64;
		config.rows[i] = 16;
	}
	/* gcc 12 thinks that the instruction reads 8 bytes. */
	__asm__ volatile("" : : "r"(&config) : "memory");
	_tile_loadconfig(&config);
}

static inline void amx_end(void)
{
	_tile_release();
}

/* gcc does not know either that loading a tile reads memory: what was written stays before. Every
 * sum begins with this. */
static inline void tiles_see_memory(void)
{
	__asm__ volatile("" : : : "memory");
}

static inline void square_zero(void)
{
	tiles_see_memory();
	_tile_zero(0);
	_tile_zero(1);
	_tile_zero(2);
	_tile_zero(3);
}

/* c: four tiles of [16][16], one after the other. */
static inline void square_load(const float *c)
{
	tiles_see_memory();
	_tile_loadd(0, c, 64);
	_tile_loadd(1, c + 256, 64);
	_tile_loadd(2, c + 512, 64);
	_tile_loadd(3, c + 768, 64);
}

static inline void square_store(float *c)
{
	_tile_stored(0, c, 64);
	_tile_stored(1, c + 256, 64);
	_tile_stored(2, c + 512, 64);
	_tile_stored(3, c + 768, 64);
}

/* C += A B of one square. a0, a1: rows 0-15 and 16-31, a_step bytes apart; b0, b1: columns. */
static inline __attribute__((always_inline)) void square_add(
	const bf16 *a0, const bf16 *a1, size_t a_step, const bf16 *b0, const bf16 *b1)
{
	_tile_loadd(4, a0, a_step);
	_tile_loadd(6, b0, 64);
	_tile_loadd(7, b1, 64);
	_tile_dpbf16ps(0, 4, 6);
	_tile_dpbf16ps(1, 4, 7);
	_tile_loadd(5, a1, a_step);
	_tile_dpbf16ps(2, 5, 6);
	_tile_dpbf16ps(3, 5, 7);
}

/* Where row r, columns 0-15 of a stored square lie; columns 16-31 are 256 floats further. */
static inline const float *square_row(const float *c, unsigned r)
{
	return c + (r / 16) * 512 + (r % 16) * 16;
}

/* Of two rows of 32 values: pairs (low[i], high[i]) of columns 0-15, and of 16-31. */
static inline __m512i pairs_low(__m512i low, __m512i high)
{
	const __m512i index = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41,
		9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
	return _mm512_permutex2var_epi16(low, index, high);
}

static inline __m512i pairs_high(__m512i low, __m512i high)
{
	const __m512i index = _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57,
		25, 56, 24, 55, 23, 54, 22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
	return _mm512_permutex2var_epi16(low, index, high);
}

/* Transposes 16 rows of 16 words of 32 bits: within lanes by unpacking, then the lanes. */
static inline __attribute__((always_inline)) void transpose_words(__m512i r[16])
{
	__m512i t[16];
	for (int i = 0; i < 16; i += 2) {
		t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
		t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
	}
	for (int i = 0; i < 16; i += 4)
		for (int j = 0; j < 2; j++) {
			r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
			r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
		}
	/* r[4 g + j] holds column 4 lane + j of the rows 4 g .. 4 g + 3. */
	for (int j = 0; j < 4; j++) {
		__m512i low = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
		__m512i odd = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
		__m512i low2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
		__m512i odd2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
		t[j] = _mm512_shuffle_i32x4(low, low2, 0x88);
		t[8 + j] = _mm512_shuffle_i32x4(low, low2, 0xdd);
		t[4 + j] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
		t[12 + j] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
	}
	for (int i = 0; i < 16; i++)
		r[i] = t[i];
}

/* Row i of `count`; zero behind them and where the mask has no bit. */
static inline __attribute__((always_inline)) __m512i line_of(
	const bf16 *rows, size_t step, uint32_t i, uint32_t count, __mmask32 mask)
{
	return i < count ? _mm512_maskz_loadu_epi16(mask, rows + i * step) : _mm512_setzero_si512();
}

#define ALL_COLUMNS 0xffffffffu

/* B lines for a sum over rows: up to 32 rows of 32 values, `step` bf16 apart, become two tiles
 * (columns 0-15 and 16-31), whose line i holds the rows 2 i and 2 i + 1. */
static inline __attribute__((always_inline)) void pack_rows(
	const bf16 *rows, size_t step, uint32_t count, __mmask32 mask, bf16 *tile0, bf16 *tile1)
{
	for (uint32_t i = 0; i < 16; i++) {
		__m512i low = line_of(rows, step, 2 * i, count, mask);
		__m512i high = line_of(rows, step, 2 * i + 1, count, mask);
		_mm512_storeu_si512(tile0 + i * TILE_LINE, pairs_low(low, high));
		_mm512_storeu_si512(tile1 + i * TILE_LINE, pairs_high(low, high));
	}
}

/* B lines for a sum over columns (the transposed matrix): up to 16 rows of 32 values become one
 * tile, whose line i holds the columns 2 i and 2 i + 1 of all rows. */
static inline __attribute__((always_inline)) void pack_columns(
	const bf16 *rows, size_t step, uint32_t count, __mmask32 mask, bf16 *tile)
{
	__m512i r[16];
	for (uint32_t i = 0; i < 16; i++)
		r[i] = line_of(rows, step, i, count, mask);
	transpose_words(r);
	for (uint32_t i = 0; i < 16; i++)
		_mm512_storeu_si512(tile + i * TILE_LINE, r[i]);
}

/* A lines for a sum over rows: 32 rows of 32 values become two tiles of transposed rows: columns
 * 0-15 and 16-31, each line 32 rows long. */
static inline void transpose_square(const bf16 *rows, size_t step, bf16 *tile0, bf16 *tile1)
{
	__m512i left[16], right[16];
	for (int i = 0; i < 16; i++) {
		__m512i low = _mm512_loadu_si512(rows + 2 * i * step);
		__m512i high = _mm512_loadu_si512(rows + (2 * i + 1) * step);
		left[i] = pairs_low(low, high);
		right[i] = pairs_high(low, high);
	}
	transpose_words(left);
	transpose_words(right);
	for (int i = 0; i < 16; i++) {
		_mm512_storeu_si512(tile0 + i * TILE_LINE, left[i]);
		_mm512_storeu_si512(tile1 + i * TILE_LINE, right[i]);
	}
}

/* 32 floats, columns 0-15 and 16-31, rounded to nearest even. */
static inline __m512i round_line(__m512 left, __m512 right)
{
	return (__m512i)_mm512_cvtne2ps_pbh(right, left);
}

static inline __m512 widen(const bf16 *values)
{
	return _mm512_castsi512_ps(_mm512_slli_epi32(
		_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)values)), 16));
}

/* gemm_amx_weights.c */
size_t amx_weights_scratch_bytes(
	const struct layout *layout, uint32_t in_width, uint32_t dout_width);
void amx_conv_weights(const struct conv_weights_call *call);
size_t amx_dw_offset(uint32_t in_width, uint32_t o, uint32_t i);
/* attention_amx.c */
size_t amx_attention_scratch_bytes(const struct attention *attention, bool training);
void amx_attention_forward(const struct attention *attention, uint32_t n, const struct tensor *q,
	const struct tensor *k, const struct tensor *v, const struct tensor *o);
void amx_attention_backward(const struct attention *attention, uint32_t n,
	const struct tensor *const qkv[3], const struct tensor *dout,
	const struct tensor *const dqkv[3]);
