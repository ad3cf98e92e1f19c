/* The two ends: conv_in, which reads 3x3 patches of x so that few channels still make one product,
 * and conv_out(silu(conv_norm_out(h))), whose result is fp32 in every engine. Where activations are
 * bf16, x is given as two summands: rounding it once would cost 1-5 % of the noise's variance at
 * small t. */
#include "daemon/model/layers.h"

static void input_plan(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct input_layer *input = &layer->input;
	uint32_t channels = 9 * unet->config.in_channels;
	input->patches = tensor_for(unet, input->out->layout, channels, step);
	if (input->conv.conv.kind == CONV_SUM)
		input->rest = tensor_for(unet, input->out->layout, channels, step);
	plan_use(input->out->value, step);
}

static void input_plan_backward(struct unet *unet, struct layer *layer, uint32_t step)
{
	plan_use(layer->input.patches, step);
	plan_use(layer->input.rest, step);
	plan_use(layer->input.out->grad, step);
}

static void input_load(struct unet *unet, struct layer *layer, const float *section)
{
	conv_params_load(&layer->input.conv, section);
}

static void input_forward(struct unet *unet, struct layer *layer)
{
	struct input_layer *input = &layer->input;
	const struct tensor *sources[] = {input->patches, input->rest};
	tensor_scatter_patches(
		unet->n, unet->x, unet->config.in_channels, input->patches, input->rest);
	struct conv_call call = {
		.n = unet->n,
		.out = input->out->value,
		.bias = {input->conv.bias->data},
	};
	conv_add_taps(&input->conv.conv, 0, sources, &call);
	conv_run(unet, &call);
}

static void input_backward(struct unet *unet, struct layer *layer)
{
	struct input_layer *input = &layer->input;
	const struct tensor *sources[] = {input->patches, input->rest};
	const struct tensor *dout = input->out->grad;
	conv_weight_gradient(unet, &input->conv, sources, &dout);
	conv_bias_gradient(unet, &input->conv, dout);
}

const struct layer_kind layer_input = {
	.name = "input",
	.plan = input_plan,
	.plan_backward = input_plan_backward,
	.load = input_load,
	.forward = input_forward,
	.backward = input_backward,
};

static void output_plan(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct output_layer *output = &layer->output;
	const struct layout *layout = output->in->layout;
	struct form form = *unet->form;
	form.elem = ELEM_F32;
	output->act = tensor_for(unet, layout, output->in->value->channels, step);
	output->y = plan_tensor(&unet->plan, &form, layout, unet->config.out_channels);
	plan_use(output->in->value, step);
	plan_use(output->y, step);
}

static void output_plan_backward(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct output_layer *output = &layer->output;
	const struct layout *layout = output->in->layout;
	plan_use(output->in->value, step);
	output->accumulate = feature_claim_grad(unet, output->in, step);
	output->back = tensor_for(unet, layout, output->in->value->channels, step);
	output->dy = tensor_for(unet, layout, unet->config.out_channels, step);
}

static void output_load(struct unet *unet, struct layer *layer, const float *section)
{
	norm_params_load(&layer->output.norm, section);
	conv_params_load(&layer->output.conv, section);
}

static void output_forward(struct unet *unet, struct layer *layer)
{
	struct output_layer *output = &layer->output;
	const struct tensor *h = output->in->value, *act = output->act;
	group_norm_forward(&output->norm.norm, unet->n, &h, output->norm.state->data, act);
	struct conv_call call = {
		.n = unet->n,
		.out = output->y,
		.bias = {output->conv.bias->data},
	};
	conv_add_taps(&output->conv.conv, 0, &act, &call);
	conv_run(unet, &call);
	tensor_gather_image(unet->n, output->y, unet->y);
}

static void output_backward(struct unet *unet, struct layer *layer)
{
	struct output_layer *output = &layer->output;
	const struct tensor *h = output->in->value, *back = output->back, *dy = output->dy;
	tensor_scatter_image(unet->n, unet->dy, dy);
	group_norm_apply(&output->norm.norm, unet->n, &h, output->norm.state->data, back);
	conv_weight_gradient(unet, &output->conv, &back, &dy);
	conv_bias_gradient(unet, &output->conv, dy);
	conv_data_gradient(unet, &output->conv, 0, &dy, back, false);
	group_norm_backward(&output->norm.norm,
		&(struct group_norm_backward){
			.n = unet->n,
			.sources = &h,
			.state = output->norm.state->data,
			.sums = unet->norm_sums->data,
			.dout = back,
			.dsources = {output->in->grad},
			.accumulate = {output->accumulate},
			.dweight = unet->grads + output->norm.weight_at,
			.dbias = unet->grads + output->norm.bias_at,
			.accumulate_params = unet->accumulate,
		});
}

const struct layer_kind layer_output = {
	.name = "output",
	.plan = output_plan,
	.plan_backward = output_plan_backward,
	.load = output_load,
	.forward = output_forward,
	.backward = output_backward,
};
