/* Every part as a whole-tensor function that returns a new tensor; the skips on a stack. */
#include "tests/oracle/naive_unet.h"

#include "tests/oracle/naive_ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct image_batch {
	uint32_t channels, size; /* n is in the net */
	double *data;
};

struct net {
	const struct unet_config *config;
	const struct tensor_table *table;
	const double *weights;
	uint32_t n;
	double *embedding_silu; /* [n][temb] */
};

static double *doubles(size_t count)
{
	double *values = calloc(count, sizeof(*values));
	if (!values)
		abort();
	return values;
}

static size_t pixels_of(struct image_batch batch)
{
	return (size_t)batch.size * batch.size;
}

static size_t elems_of(const struct net *net, struct image_batch batch)
{
	return net->n * batch.channels * pixels_of(batch);
}

static const double *param(const struct net *net, const char *part, const char *suffix)
{
	char name[TENSOR_NAME_MAX];
	snprintf(name, sizeof(name), "%s%s", part, suffix);
	const struct tensor_spec *spec = tensor_table_find(net->table, name);
	if (!spec) {
		fprintf(stderr, "the table has no tensor %s\n", name);
		abort();
	}
	return net->weights + spec->offset / sizeof(float);
}

static struct image_batch conv(const struct net *net, const char *part, const char *name,
	struct naive_conv shape, struct image_batch in)
{
	char weight[32], bias[32];
	snprintf(weight, sizeof(weight), "%s.weight", name);
	snprintf(bias, sizeof(bias), "%s.bias", name);
	struct image_batch out = {shape.out, naive_conv_size(&shape, in.size), NULL};
	out.data = doubles(elems_of(net, out));
	naive_conv2d(&shape, net->n, in.size, in.size, in.data, param(net, part, weight),
		param(net, part, bias), out.data);
	return out;
}

static struct image_batch conv3(const struct net *net, const char *part, const char *name,
	uint32_t out, struct image_batch in)
{
	return conv(net, part, name, (struct naive_conv){in.channels, out, 3, 1, 1, 1}, in);
}

static struct image_batch norm(
	const struct net *net, const char *part, const char *name, bool silu, struct image_batch in)
{
	char weight[32], bias[32];
	snprintf(weight, sizeof(weight), "%s.weight", name);
	snprintf(bias, sizeof(bias), "%s.bias", name);
	struct image_batch out = {in.channels, in.size, doubles(elems_of(net, in))};
	naive_group_norm(net->n, in.channels, (uint32_t)pixels_of(in), net->config->groups,
		(double)net->config->norm_eps, param(net, part, weight), param(net, part, bias),
		in.data, out.data);
	for (size_t i = 0; silu && i < elems_of(net, out); i++)
		out.data[i] = naive_silu(out.data[i]);
	return out;
}

static void make_embedding(struct net *net, const double *timesteps, const int32_t *labels)
{
	uint32_t channels = net->config->channels[0], temb = 4 * channels;
	double *hidden = doubles(temb), *sinusoid = doubles(channels);
	net->embedding_silu = doubles((size_t)net->n * temb);
	for (uint32_t image = 0; image < net->n; image++) {
		double *e = net->embedding_silu + (size_t)image * temb;
		naive_timestep_embedding(timesteps[image], channels, net->config->flip_sin_to_cos,
			net->config->freq_shift, sinusoid);
		naive_linear(1, channels, temb, sinusoid,
			param(net, "time_embedding", ".linear_1.weight"),
			param(net, "time_embedding", ".linear_1.bias"), hidden);
		for (uint32_t i = 0; i < temb; i++)
			hidden[i] = naive_silu(hidden[i]);
		naive_linear(1, temb, temb, hidden,
			param(net, "time_embedding", ".linear_2.weight"),
			param(net, "time_embedding", ".linear_2.bias"), e);
		for (uint32_t i = 0; i < temb; i++) {
			if (net->config->class_count)
				e[i] += param(net, "class_embedding",
					".weight")[(size_t)labels[image] * temb + i];
			e[i] = naive_silu(e[i]);
		}
	}
	free(hidden);
	free(sinusoid);
}

static void add_time(const struct net *net, const char *part, struct image_batch h)
{
	uint32_t temb = 4 * net->config->channels[0];
	double *t = doubles((size_t)net->n * h.channels);
	naive_linear(net->n, temb, h.channels, net->embedding_silu,
		param(net, part, ".time_emb_proj.weight"), param(net, part, ".time_emb_proj.bias"),
		t);
	for (size_t i = 0; i < elems_of(net, h); i++)
		h.data[i] += t[i / pixels_of(h)];
	free(t);
}

static struct image_batch resnet(
	const struct net *net, const struct part *part, struct image_batch x)
{
	struct image_batch act1 = norm(net, part->name, ".norm1", true, x);
	struct image_batch h = conv3(net, part->name, ".conv1", part->out, act1);
	add_time(net, part->name, h);
	struct image_batch act2 = norm(net, part->name, ".norm2", true, h);
	struct image_batch y = conv3(net, part->name, ".conv2", part->out, act2);
	struct image_batch shortcut = x;
	if (x.channels != part->out)
		shortcut = conv(net, part->name, ".conv_shortcut",
			(struct naive_conv){x.channels, part->out, 1, 1, 0, 0}, x);
	for (size_t i = 0; i < elems_of(net, y); i++)
		y.data[i] += shortcut.data[i];
	if (shortcut.data != x.data)
		free(shortcut.data);
	free(act1.data);
	free(h.data);
	free(act2.data);
	return y;
}

/* [c][pixels] of one image <-> [pixels][c] */
static void transpose(const double *src, size_t rows, size_t columns, double *dst)
{
	for (size_t i = 0; i < rows; i++)
		for (size_t j = 0; j < columns; j++)
			dst[j * rows + i] = src[i * columns + j];
}

static struct image_batch attention(
	const struct net *net, const struct part *part, struct image_batch x)
{
	static const char *const names[4] = {".to_q", ".to_k", ".to_v", ".to_out.0"};
	uint32_t c = x.channels, tokens = (uint32_t)pixels_of(x);
	uint32_t dim = net->config->head_dim ? net->config->head_dim : c;
	size_t elems = (size_t)tokens * c;
	struct image_batch y = norm(net, part->name, ".group_norm", false, x);
	double *z = doubles(elems), *o = doubles(elems), *projected[4];
	for (int i = 0; i < 4; i++)
		projected[i] = doubles(elems);
	for (uint32_t image = 0; image < net->n; image++) {
		transpose(y.data + image * elems, c, tokens, z);
		for (int i = 0; i < 4; i++) {
			char weight[32], bias[32];
			snprintf(weight, sizeof(weight), "%s.weight", names[i]);
			snprintf(bias, sizeof(bias), "%s.bias", names[i]);
			if (i == 3)
				for (uint32_t at = 0; at < c; at += dim)
					naive_attention(tokens, dim, c, projected[0] + at,
						projected[1] + at, projected[2] + at, o + at);
			naive_linear(tokens, c, c, i == 3 ? o : z, param(net, part->name, weight),
				param(net, part->name, bias), projected[i]);
		}
		transpose(projected[3], tokens, c, y.data + image * elems);
	}
	for (size_t i = 0; i < elems_of(net, y); i++)
		y.data[i] += x.data[i];
	for (int i = 0; i < 4; i++)
		free(projected[i]);
	free(z);
	free(o);
	return y;
}

static struct image_batch resample(
	const struct net *net, const struct part *part, struct image_batch x)
{
	if (part->kind == PART_DOWN) {
		uint32_t before = net->config->downsample_padding;
		struct naive_conv shape = {x.channels, part->out, 3, 2, before, 1};
		return conv(net, part->name, "", shape, x);
	}
	struct image_batch large = {x.channels, 2 * x.size, NULL};
	large.data = doubles(elems_of(net, large));
	naive_upsample(net->n, x.channels, x.size, x.size, x.data, large.data);
	struct image_batch y = conv3(net, part->name, "", part->out, large);
	free(large.data);
	return y;
}

/* Channels of a behind those of h, image by image. */
static struct image_batch concat(
	const struct net *net, struct image_batch h, struct image_batch skip)
{
	struct image_batch y = {h.channels + skip.channels, h.size, NULL};
	size_t h_elems = h.channels * pixels_of(h), skip_elems = skip.channels * pixels_of(h);
	double *out = y.data = doubles(elems_of(net, y));
	for (uint32_t image = 0; image < net->n; image++) {
		memcpy(out, h.data + image * h_elems, h_elems * sizeof(double));
		memcpy(out + h_elems, skip.data + image * skip_elems, skip_elems * sizeof(double));
		out += h_elems + skip_elems;
	}
	return y;
}

static struct image_batch run_part(
	const struct net *net, const struct part *part, struct image_batch h)
{
	switch (part->kind) {
	case PART_CONV_IN:
		return conv3(net, part->name, "", part->out, h);
	case PART_RESNET:
		return resnet(net, part, h);
	case PART_ATTENTION:
		return attention(net, part, h);
	case PART_DOWN:
	case PART_UP:
		return resample(net, part, h);
	case PART_OUTPUT:
		break;
	}
	struct image_batch act = norm(net, "conv_norm_out", "", true, h);
	struct image_batch y = conv3(net, part->name, "", part->out, act);
	free(act.data);
	return y;
}

void naive_unet(const struct unet_config *config, const struct tensor_table *table,
	const double *weights, uint32_t n, const double *x, const double *timesteps,
	const int32_t *labels, double *y)
{
	struct net net = {config, table, weights, n, NULL};
	struct image_batch h = {config->in_channels, config->sample_size, NULL};
	struct image_batch skips[PARTS_MAX];
	uint32_t skip_count = 0;
	struct parts *parts = malloc(sizeof(*parts));
	if (!parts)
		abort();
	parts_of(config, parts);
	make_embedding(&net, timesteps, labels);
	h.data = doubles(elems_of(&net, h));
	memcpy(h.data, x, elems_of(&net, h) * sizeof(double));
	bool h_is_skip = false; /* the stack owns it */
	for (uint32_t i = 0; i < parts->count; i++) {
		const struct part *part = &parts->items[i];
		struct image_batch in = h;
		if (part->skip) {
			struct image_batch skip = skips[--skip_count];
			in = concat(&net, h, skip);
			free(skip.data);
		}
		struct image_batch out = run_part(&net, part, in);
		if (part->skip)
			free(in.data);
		if (!h_is_skip)
			free(h.data);
		h = out;
		h_is_skip = part->push;
		if (part->push)
			skips[skip_count++] = out;
	}
	memcpy(y, h.data, elems_of(&net, h) * sizeof(double));
	free(h.data);
	free(net.embedding_silu);
	free(parts);
}
