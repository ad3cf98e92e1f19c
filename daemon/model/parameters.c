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

struct tensor *persistent_bytes(struct unet *unet, size_t bytes)
{
	struct tensor *tensor = plan_array(&unet->plan, bytes);
	plan_use(tensor, 0);
	plan_use(tensor, UINT32_MAX - 1);
	return tensor;
}

struct tensor *persistent_array(struct unet *unet, size_t elems)
{
	return persistent_bytes(unet, elems * sizeof(float));
}

struct tensor *tensor_for(
	struct unet *unet, const struct layout *layout, uint32_t channels, uint32_t step)
{
	struct tensor *tensor = plan_tensor(&unet->plan, unet->form, layout, channels);
	plan_use(tensor, step);
	return tensor;
}

bool feature_claim_grad(struct unet *unet, struct feature *feature, uint32_t step)
{
	bool accumulate = feature->grad_claimed;
	if (!accumulate)
		feature->grad = tensor_for(unet, feature->layout, feature->value->channels, step);
	feature->grad_claimed = true;
	plan_use(feature->grad, step);
	return accumulate;
}

struct channel_span feature_span(const struct feature *feature)
{
	return (struct channel_span){feature->value->channels, feature->value->width};
}

static void grow(size_t *size, size_t needed)
{
	if (needed > *size)
		*size = needed;
}

void conv_params_init(struct unet *unet, struct conv_params *params, const char *name,
	enum conv_kind kind, const struct channel_span *spans, uint32_t span_count, bool split,
	uint32_t out_channels)
{
	conv_init(&params->conv, unet->engine, kind, spans, span_count, split, out_channels);
	params->weight_at = offset_of(unet, name, "weight");
	params->bias_at = offset_of(unet, name, "bias");
	size_t packed = conv_packed_bytes(&params->conv);
	params->forward = persistent_bytes(unet, packed);
	params->backward = unet->training ? persistent_bytes(unet, packed) : NULL;
	params->bias = persistent_array(unet, params->conv.out_width);
	/* No level has a longer row than the first. */
	grow(&unet->scratch_bytes, conv_scratch_bytes(&params->conv, &unet->positions[0]));
	grow(&unet->raw_elems, conv_raw_elems(&params->conv));
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

void conv_params_load(struct conv_params *params, const float *section)
{
	struct conv *conv = &params->conv;
	conv->forward = params->forward->data;
	conv->backward = params->backward ? params->backward->data : NULL;
	conv_pack(conv, section + params->weight_at);
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
	tensor_zero_edges(call->out, call->n);
	DEBUG_CHECK(tensor_pads_are_zero(call->out, call->n));
}

void conv_data_gradient(struct unet *unet, const struct conv_params *params, uint32_t source,
	const struct tensor *const *dout, const struct tensor *din, bool accumulate)
{
	struct conv_call call = {.n = unet->n, .out = din, .accumulate = accumulate};
	conv_add_data_taps(&params->conv, source, dout, &call);
	conv_run(unet, &call);
}

void conv_bias_gradient(
	struct unet *unet, const struct conv_params *params, const struct tensor *dout)
{
	uint32_t channels = params->conv.out_channels;
	float *sums = unet->image_sums->data;
	sums_per_image(unet->n, dout, sums);
	sums_over_rows(
		unet->n, sums, channels, channels, unet->grads + params->bias_at, unet->accumulate);
}

void conv_weight_gradient(struct unet *unet, const struct conv_params *params,
	const struct tensor *const *sources, const struct tensor *const *dout)
{
	conv_weights_gradient(&params->conv, unet->n, sources, dout, unet->raw->data,
		unet->scratch->data, unet->grads + params->weight_at, unet->accumulate);
}
