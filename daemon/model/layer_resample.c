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
	for (int i = 0; i < 4; i++)
		phases[i] = tensor_for(
			unet, small_side(resample)->layout, resample->in->value->channels, step);
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
	conv_params_load(&layer->resample.conv, section);
}

static void forward(struct unet *unet, struct layer *layer)
{
	struct resample_layer *resample = &layer->resample;
	const struct tensor *in = resample->in->value, *out = resample->out->value;
	const struct tensor *const *phases = (const struct tensor *const *)resample->phases;
	struct conv_call call = {.n = unet->n, .bias = {resample->conv.bias->data}};
	if (!resample->up) {
		tensor_split_phases(unet->n, in, phases);
		conv_add_taps(&resample->conv.conv, 0, phases, &call);
		call.out = out;
		conv_run(unet, &call);
		return;
	}
	for (uint32_t phase = 0; phase < 4; phase++) {
		call.tap_count = 0;
		conv_add_taps(&resample->conv.conv, phase, &in, &call);
		call.out = phases[phase];
		conv_run(unet, &call);
	}
	tensor_merge_phases(unet->n, phases, out, false);
}

static void backward(struct unet *unet, struct layer *layer)
{
	struct resample_layer *resample = &layer->resample;
	const struct tensor *in = resample->in->value, *dout = resample->out->grad;
	const struct tensor *din = resample->in->grad;
	const struct tensor *const *phases = (const struct tensor *const *)resample->back_phases;
	conv_bias_gradient(unet, &resample->conv, dout);
	if (resample->up) {
		tensor_split_phases(unet->n, dout, phases);
		conv_weight_gradient(unet, &resample->conv, &in, phases);
		conv_data_gradient(unet, &resample->conv, 0, phases, din, resample->accumulate);
		return;
	}
	tensor_split_phases(unet->n, in, phases);
	conv_weight_gradient(unet, &resample->conv, phases, &dout);
	for (uint32_t phase = 0; phase < 4; phase++)
		conv_data_gradient(unet, &resample->conv, phase, &dout, phases[phase], false);
	tensor_merge_phases(unet->n, phases, din, resample->accumulate);
}

const struct layer_kind layer_resample = {
	.name = "resample",
	.plan = plan,
	.plan_backward = plan_backward,
	.load = load,
	.forward = forward,
	.backward = backward,
};
