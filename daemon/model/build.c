/* Makes the call list from the architecture's parts: one layer a part behind the time embedding,
 * with the stack of skips resolved to features. */
#include "base/panic.h"
#include "daemon/model/layers.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* Where the list stands while it is made. */
struct builder {
	struct unet *unet;
	struct feature *h; /* the newest result */
	struct feature *skips[PARTS_MAX];
	uint32_t skip_count;
};

/* name.suffix, in a buffer of the caller's full expression. */
struct full_name {
	char text[TENSOR_NAME_MAX];
};

static struct full_name join(const char *name, const char *suffix)
{
	struct full_name full;
	int length = snprintf(full.text, sizeof(full.text), "%s.%s", name, suffix);
	CHECK(length > 0 && (size_t)length < sizeof(full.text));
	return full;
}

static void build_time(struct unet *unet, struct layer *layer)
{
	struct time_layer *time = &layer->time;
	uint32_t temb = unet->time_width;
	layer->kind = &layer_time;
	linear_params_init(
		unet, &time->linear_1, "time_embedding.linear_1", unet->config.channels[0], temb);
	linear_params_init(unet, &time->linear_2, "time_embedding.linear_2", temb, temb);
	if (unet->config.class_count) {
		time->class_at = param_offset(unet, "class_embedding.weight");
		time->class_table = persistent_array(unet, (size_t)unet->config.class_count * temb);
	}
}

static void build_input(struct unet *unet, struct layer *layer, const struct part *part)
{
	/* A patch of 3x3 pixels of each channel is one row of the weight: [out, in, 3, 3] is
	 * [out, 9 in]. */
	uint32_t channels = 9 * part->in;
	struct channel_span span = {channels, round_up_to(channels, unet->form->align)};
	enum conv_kind kind = unet->form->elem == ELEM_BF16 ? CONV_SUM : CONV_1X1;
	layer->kind = &layer_input;
	conv_params_init(unet, &layer->input.conv, part->name, kind, &span, 1, false, part->out);
}

static void build_resnet(struct builder *builder, struct layer *layer, const struct part *part)
{
	struct unet *unet = builder->unet;
	struct resnet_layer *resnet = &layer->resnet;
	struct channel_span spans[SPANS_MAX];
	struct channel_span inner = {part->out, round_up_to(part->out, unet->form->align)};
	layer->kind = &layer_resnet;
	resnet->in[resnet->in_count++] = builder->h;
	if (part->skip) {
		CHECK(builder->skip_count > 0);
		resnet->in[resnet->in_count++] = builder->skips[--builder->skip_count];
	}
	for (uint32_t i = 0; i < resnet->in_count; i++)
		spans[i] = feature_span(resnet->in[i]);
	uint32_t count = resnet->in_count;
	norm_params_init(unet, &resnet->norm1, join(part->name, "norm1").text, spans, count, true);
	CHECK(resnet->norm1.norm.channels == part->in + part->skip);
	conv_params_init(unet, &resnet->conv1, join(part->name, "conv1").text, CONV_3X3, spans,
		count, false, part->out);
	linear_params_init(unet, &resnet->time_proj, join(part->name, "time_emb_proj").text,
		unet->time_width, part->out);
	norm_params_init(unet, &resnet->norm2, join(part->name, "norm2").text, &inner, 1, true);
	conv_params_init(unet, &resnet->conv2, join(part->name, "conv2").text, CONV_3X3, &inner, 1,
		false, part->out);
	resnet->has_shortcut = part->in + part->skip != part->out;
	if (resnet->has_shortcut)
		conv_params_init(unet, &resnet->shortcut, join(part->name, "conv_shortcut").text,
			CONV_1X1, spans, count, true, part->out);
	resnet->time_column = unet->time_proj_stride;
	unet->time_proj_stride += inner.width;
}

static void build_attention(struct builder *builder, struct layer *layer, const struct part *part)
{
	struct unet *unet = builder->unet;
	struct attention_layer *attention = &layer->attention;
	struct channel_span span = feature_span(builder->h);
	uint32_t head_dim = unet->config.head_dim ? unet->config.head_dim : part->in;
	layer->kind = &layer_attention;
	attention->in = builder->h;
	norm_params_init(
		unet, &attention->norm, join(part->name, "group_norm").text, &span, 1, false);
	const struct {
		const char *name;
		struct conv_params *params;
	} projections[] = {
		{"to_q", &attention->to_q},
		{"to_k", &attention->to_k},
		{"to_v", &attention->to_v},
		{"to_out.0", &attention->to_out},
	};
	for (int i = 0; i < 4; i++)
		conv_params_init(unet, projections[i].params,
			join(part->name, projections[i].name).text, CONV_1X1, &span, 1, false,
			part->in);
	attention->attention = (struct attention){
		.engine = unet->engine,
		.tokens = unet->tokens[part->level].image_stride,
		.heads = part->in / head_dim,
		.head_dim = head_dim,
		.thread_count = unet->thread_count,
	};
}

static void build_resample(struct builder *builder, struct layer *layer, const struct part *part)
{
	struct channel_span span = feature_span(builder->h);
	enum conv_kind down = builder->unet->config.downsample_padding ? CONV_DOWN_1 : CONV_DOWN_0;
	layer->kind = &layer_resample;
	layer->resample.up = part->kind == PART_UP;
	layer->resample.in = builder->h;
	conv_params_init(builder->unet, &layer->resample.conv, part->name,
		layer->resample.up ? CONV_UP : down, &span, 1, false, part->out);
}

static void build_output(struct builder *builder, struct layer *layer, const struct part *part)
{
	struct channel_span span = feature_span(builder->h);
	layer->kind = &layer_output;
	layer->output.in = builder->h;
	norm_params_init(builder->unet, &layer->output.norm, "conv_norm_out", &span, 1, true);
	conv_params_init(builder->unet, &layer->output.conv, part->name, CONV_3X3, &span, 1, false,
		part->out);
}

/* The feature that a part makes. */
static struct feature *make_result(struct unet *unet, uint32_t index, const struct part *part)
{
	uint32_t level = part->level;
	if (part->kind == PART_DOWN)
		level++;
	else if (part->kind == PART_UP)
		level--;
	struct feature *feature = &unet->features[index];
	feature->layout = &unet->positions[level];
	feature->value = plan_tensor(&unet->plan, unet->form, feature->layout, part->out);
	return feature;
}

static void build_part(struct builder *builder, uint32_t index, const struct part *part)
{
	struct unet *unet = builder->unet;
	struct layer *layer = &unet->layers[index];
	if (part->kind == PART_OUTPUT) {
		build_output(builder, layer, part);
		return;
	}
	struct feature *result = make_result(unet, index, part);
	switch (part->kind) {
	case PART_CONV_IN:
		build_input(unet, layer, part);
		layer->input.out = result;
		break;
	case PART_RESNET:
		build_resnet(builder, layer, part);
		layer->resnet.out = result;
		break;
	case PART_ATTENTION:
		build_attention(builder, layer, part);
		layer->attention.out = result;
		break;
	case PART_DOWN:
	case PART_UP:
		build_resample(builder, layer, part);
		layer->resample.out = result;
		break;
	case PART_OUTPUT:
		break;
	}
	builder->h = result;
	if (part->push)
		builder->skips[builder->skip_count++] = result;
}

int unet_build_layers(struct unet *unet)
{
	struct parts *parts = malloc(sizeof(*parts));
	struct builder *builder = calloc(1, sizeof(*builder));
	int code = -ENOMEM;
	if (!parts || !builder)
		goto out;
	parts_of(&unet->config, parts);
	unet->layers = calloc(parts->count + 1, sizeof(*unet->layers));
	unet->features = calloc(parts->count + 1, sizeof(*unet->features));
	if (!unet->layers || !unet->features)
		goto out;
	unet->layer_count = parts->count + 1;
	builder->unet = unet;
	build_time(unet, &unet->layers[0]);
	for (uint32_t i = 0; i < parts->count; i++)
		build_part(builder, i + 1, &parts->items[i]);
	CHECK(builder->skip_count == 0);
	code = 0;
out:
	free(builder);
	free(parts);
	return code;
}
