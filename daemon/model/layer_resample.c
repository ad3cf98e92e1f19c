/* Downsample2D (3x3, stride 2, both paddings) and Upsample2D (nearest x2, then 3x3). The larger
 * side is handled as four phase images of the smaller size. */
#include "daemon/model/layers.h"

static const struct feature *small_side(const struct resample_layer *resample)
{
	return resample->up ? resample->in : resample->out;
}

static void plan_phases(struct unet *unet, const struct resample_layer *resample, uint32_t step,
	struct tensor *phases[4])
{
	for (int i = 0; i < 4; i++) {
		phases[i] = plan_tensor(
			&unet->plan, small_side(resample)->layout, resample->in->value->channels);
		plan_use(phases[i], step);
	}
}

static void plan(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct resample_layer *resample = &layer->resample;
	plan_use(resample->in->value, step);
	plan_use(resample->out->value, step);
	plan_phases(unet, resample, step, resample->phases);
}

static void plan_backward(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct resample_layer *resample = &layer->resample;
	plan_use(resample->in->value, step);
	plan_use(resample->out->grad, step);
	resample->accumulate = feature_claim_grad(unet, resample->in, step);
	plan_phases(unet, resample, step, resample->back_phases);
}

static void load(struct unet *unet, struct layer *layer, const float *section)
{
	conv_params_load(unet, &layer->resample.conv, section);
}

struct phase_pointers {
	float *at[4];
	const float *const_at[4];
};

static struct phase_pointers pointers_of(struct tensor *const phases[4])
{
	struct phase_pointers pointers;
	for (int i = 0; i < 4; i++)
		pointers.const_at[i] = pointers.at[i] = phases[i]->data;
	return pointers;
}

static void forward(struct unet *unet, struct layer *layer)
{
	struct resample_layer *resample = &layer->resample;
	const struct layout *in_layout = resample->in->layout, *out_layout = resample->out->layout;
	const float *in = resample->in->value->data;
	float *out = resample->out->value->data;
	uint32_t width = resample->in->value->width;
	struct phase_pointers phases = pointers_of(resample->phases);
	struct conv_call call = {
		.layout = small_side(resample)->layout,
		.n = unet->n,
		.out_width = width,
		.bias = {resample->conv.bias->data},
	};
	if (!resample->up) {
		layout_split_phases(in_layout, out_layout, unet->n, in, phases.at, width);
		conv_add_taps(&resample->conv.conv, out_layout, 0, phases.const_at, &call);
		call.out = out;
		conv_run(unet, &call);
		return;
	}
	for (uint32_t phase = 0; phase < 4; phase++) {
		call.tap_count = 0;
		conv_add_taps(&resample->conv.conv, in_layout, phase, &in, &call);
		call.out = phases.at[phase];
		conv_run(unet, &call);
	}
	layout_merge_phases(out_layout, in_layout, unet->n, phases.const_at, out, width, false);
}

static void backward(struct unet *unet, struct layer *layer)
{
	struct resample_layer *resample = &layer->resample;
	const struct layout *in_layout = resample->in->layout, *out_layout = resample->out->layout;
	const float *in = resample->in->value->data, *dout = resample->out->grad->data;
	float *din = resample->in->grad->data;
	uint32_t width = resample->in->value->width;
	struct phase_pointers phases = pointers_of(resample->back_phases);
	conv_bias_gradient(unet, &resample->conv, out_layout, dout);
	if (resample->up) {
		layout_split_phases(out_layout, in_layout, unet->n, dout, phases.at, width);
		conv_weight_gradient(unet, &resample->conv, in_layout, &in, phases.const_at);
		conv_data_gradient(unet, &resample->conv, in_layout, 0, phases.const_at, din, width,
			resample->accumulate);
		return;
	}
	layout_split_phases(in_layout, out_layout, unet->n, in, phases.at, width);
	conv_weight_gradient(unet, &resample->conv, out_layout, phases.const_at, &dout);
	for (uint32_t phase = 0; phase < 4; phase++)
		conv_data_gradient(unet, &resample->conv, out_layout, phase, &dout,
			phases.at[phase], width, false);
	layout_merge_phases(
		in_layout, out_layout, unet->n, phases.const_at, din, width, resample->accumulate);
}

const struct layer_kind layer_resample = {
	.name = "resample",
	.plan = plan,
	.plan_backward = plan_backward,
	.load = load,
	.forward = forward,
	.backward = backward,
};
