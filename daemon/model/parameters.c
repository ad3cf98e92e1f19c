/* Parameters of the layers: where they lie in a section, their working copies, their gradients. */
#include "base/panic.h"
#include "daemon/model/layers.h"

#include <stdio.h>
#include <string.h>

uint64_t param_offset(const struct unet *unet, const char *name)
{
	const struct tensor_spec *spec = tensor_table_find(unet->table, name);
	CHECK(spec && spec->offset % sizeof(float) == 0);
	return spec->offset / sizeof(float);
}

static uint64_t offset_of(const struct unet *unet, const char *name, const char *what)
{
	char full[TENSOR_NAME_MAX];
	int length = snprintf(full, sizeof(full), "%s.%s", name, what);
	CHECK(length > 0 && (size_t)length < sizeof(full));
	return param_offset(unet, full);
}

struct tensor *persistent_array(struct unet *unet, size_t elems)
{
	struct tensor *tensor = plan_array(&unet->plan, elems);
	plan_use(tensor, 0);
	plan_use(tensor, UINT32_MAX - 1);
	return tensor;
}

bool feature_claim_grad(struct unet *unet, struct feature *feature, uint32_t step)
{
	bool accumulate = feature->grad_claimed;
	if (!accumulate)
		feature->grad = plan_tensor(&unet->plan, feature->layout, feature->value->channels);
	feature->grad_claimed = true;
	plan_use(feature->grad, step);
	return accumulate;
}

struct channel_span feature_span(const struct feature *feature)
{
	return (struct channel_span){feature->value->channels, feature->value->width};
}

static void grow(size_t *elems, size_t needed)
{
	if (needed > *elems)
		*elems = needed;
}

void conv_params_init(struct unet *unet, struct conv_params *params, const char *name,
	enum conv_kind kind, const struct channel_span *spans, uint32_t span_count, bool split,
	uint32_t out_channels)
{
	conv_init(&params->conv, unet->engine, kind, spans, span_count, split, out_channels);
	params->weight_at = offset_of(unet, name, "weight");
	params->bias_at = offset_of(unet, name, "bias");
	size_t packed = conv_packed_bytes(&params->conv) / sizeof(float);
	params->forward = persistent_array(unet, packed);
	params->backward = unet->training ? persistent_array(unet, packed) : NULL;
	params->bias = persistent_array(unet, params->conv.out_width);
	grow(&unet->matrices_elems, conv_scratch_elems(&params->conv));
	grow(&unet->image_sums_elems, (size_t)unet->batch * out_channels);
}

void norm_params_init(struct unet *unet, struct norm_params *params, const char *name,
	const struct channel_span *spans, uint32_t span_count, bool silu)
{
	group_norm_init(
		&params->norm, spans, span_count, unet->config.groups, unet->config.norm_eps, silu);
	params->weight_at = offset_of(unet, name, "weight");
	params->bias_at = offset_of(unet, name, "bias");
	params->weight = persistent_array(unet, params->norm.channels);
	params->bias = persistent_array(unet, params->norm.channels);
	params->state = persistent_array(unet, group_norm_state_elems(&params->norm, unet->batch));
	grow(&unet->norm_sums_elems, group_norm_sums_elems(&params->norm, unet->batch));
}

void linear_params_init(struct unet *unet, struct linear_params *params, const char *name,
	uint32_t in, uint32_t out)
{
	params->linear = (struct linear){.in = in, .out = out};
	params->weight_at = offset_of(unet, name, "weight");
	params->bias_at = offset_of(unet, name, "bias");
	params->weight = persistent_array(unet, (size_t)in * out);
	params->bias = persistent_array(unet, out);
}

void conv_params_load(struct unet *unet, struct conv_params *params, const float *section)
{
	struct conv *conv = &params->conv;
	conv->forward = (uint8_t *)params->forward->data;
	conv->backward = params->backward ? (uint8_t *)params->backward->data : NULL;
	conv_pack(conv, section + params->weight_at, unet->matrices->data);
	float *bias = params->bias->data;
	memcpy(bias, section + params->bias_at, conv->out_channels * sizeof(float));
	memset(bias + conv->out_channels, 0,
		(conv->out_width - conv->out_channels) * sizeof(float));
}

void norm_params_load(struct norm_params *params, const float *section)
{
	size_t bytes = params->norm.channels * sizeof(float);
	memcpy(params->weight->data, section + params->weight_at, bytes);
	memcpy(params->bias->data, section + params->bias_at, bytes);
	params->norm.weight = params->weight->data;
	params->norm.bias = params->bias->data;
}

void linear_params_load(struct linear_params *params, const float *section)
{
	struct linear *linear = &params->linear;
	memcpy(params->weight->data, section + params->weight_at,
		(size_t)linear->in * linear->out * sizeof(float));
	memcpy(params->bias->data, section + params->bias_at, linear->out * sizeof(float));
	linear->weight = params->weight->data;
	linear->bias = params->bias->data;
}

void conv_run(struct unet *unet, const struct conv_call *call)
{
	unet->engine->conv(call);
	layout_zero_edges(call->layout, call->n, call->out, call->out_width);
	DEBUG_CHECK(layout_pads_are_zero(
		call->layout, call->n, call->out, call->out_width, call->out_width));
}

void conv_data_gradient(struct unet *unet, const struct conv_params *params,
	const struct layout *layout, uint32_t source, const float *const *dout, float *din,
	uint32_t din_width, bool accumulate)
{
	struct conv_call call = {
		.layout = layout,
		.n = unet->n,
		.out = din,
		.out_width = din_width,
		.accumulate = accumulate,
	};
	conv_add_data_taps(&params->conv, layout, source, dout, &call);
	conv_run(unet, &call);
}

void conv_bias_gradient(struct unet *unet, const struct conv_params *params,
	const struct layout *layout, const float *dout)
{
	const struct conv *conv = &params->conv;
	float *sums = unet->image_sums->data;
	sums_per_image(layout, unet->n, dout, conv->out_channels, conv->out_width, sums);
	sums_over_rows(unet->n, sums, conv->out_channels, conv->out_channels,
		unet->grads + params->bias_at, unet->accumulate);
}

void conv_weight_gradient(struct unet *unet, const struct conv_params *params,
	const struct layout *layout, const float *const *sources, const float *const *dout)
{
	conv_weights_gradient(&params->conv, layout, unet->n, sources, dout, unet->matrices->data,
		unet->grads + params->weight_at, unet->accumulate);
}
