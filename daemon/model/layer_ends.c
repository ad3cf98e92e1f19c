/* The two ends: conv_in, which reads 3x3 patches of x so that few channels still make one product,
 * and conv_out(silu(conv_norm_out(h))). */
#include "daemon/model/layers.h"

static void input_plan(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct input_layer *input = &layer->input;
	input->patches = plan_tensor(&unet->plan, input->out->layout, 9 * unet->config.in_channels);
	plan_use(input->patches, step);
	plan_use(input->out->value, step);
}

static void input_plan_backward(struct unet *unet, struct layer *layer, uint32_t step)
{
	plan_use(layer->input.patches, step);
	plan_use(layer->input.out->grad, step);
}

static void input_load(struct unet *unet, struct layer *layer, const float *section)
{
	conv_params_load(unet, &layer->input.conv, section);
}

static void input_forward(struct unet *unet, struct layer *layer)
{
	struct input_layer *input = &layer->input;
	const struct layout *layout = input->out->layout;
	layout_scatter_patches(layout, unet->n, unet->x, unet->config.in_channels,
		input->patches->data, input->patches->width);
	struct conv_call call = {
		.layout = layout,
		.n = unet->n,
		.out = input->out->value->data,
		.out_width = input->out->value->width,
		.bias = {input->conv.bias->data},
	};
	conv_add_taps(&input->conv.conv, layout, 0, (const float *[]){input->patches->data}, &call);
	conv_run(unet, &call);
}

static void input_backward(struct unet *unet, struct layer *layer)
{
	struct input_layer *input = &layer->input;
	const float *patches = input->patches->data, *dout = input->out->grad->data;
	conv_weight_gradient(unet, &input->conv, input->out->layout, &patches, &dout);
	conv_bias_gradient(unet, &input->conv, input->out->layout, dout);
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
	output->act = plan_tensor(&unet->plan, layout, output->in->value->channels);
	output->y = plan_tensor(&unet->plan, layout, unet->config.out_channels);
	plan_use(output->in->value, step);
	plan_use(output->act, step);
	plan_use(output->y, step);
}

static void output_plan_backward(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct output_layer *output = &layer->output;
	const struct layout *layout = output->in->layout;
	plan_use(output->in->value, step);
	output->accumulate = feature_claim_grad(unet, output->in, step);
	output->back_act = plan_tensor(&unet->plan, layout, output->in->value->channels);
	output->dact = plan_tensor(&unet->plan, layout, output->in->value->channels);
	output->dy = plan_tensor(&unet->plan, layout, unet->config.out_channels);
	plan_use(output->back_act, step);
	plan_use(output->dact, step);
	plan_use(output->dy, step);
}

static void output_load(struct unet *unet, struct layer *layer, const float *section)
{
	norm_params_load(&layer->output.norm, section);
	conv_params_load(unet, &layer->output.conv, section);
}

static void output_forward(struct unet *unet, struct layer *layer)
{
	struct output_layer *output = &layer->output;
	const struct layout *layout = output->in->layout;
	const float *h = output->in->value->data;
	group_norm_forward(&output->norm.norm, layout, unet->n, &h, output->norm.state->data,
		layout, output->act->data);
	struct conv_call call = {
		.layout = layout,
		.n = unet->n,
		.out = output->y->data,
		.out_width = output->y->width,
		.bias = {output->conv.bias->data},
	};
	conv_add_taps(&output->conv.conv, layout, 0, (const float *[]){output->act->data}, &call);
	conv_run(unet, &call);
	layout_gather_image(layout, unet->n, output->y->data, output->y->width,
		unet->config.out_channels, unet->y);
}

static void output_backward(struct unet *unet, struct layer *layer)
{
	struct output_layer *output = &layer->output;
	const struct layout *layout = output->in->layout;
	const float *h = output->in->value->data, *act = output->back_act->data;
	const float *dy = output->dy->data;
	layout_scatter_image(layout, unet->n, unet->dy, unet->config.out_channels, output->dy->data,
		output->dy->width);
	group_norm_apply(&output->norm.norm, layout, unet->n, &h, output->norm.state->data, layout,
		output->back_act->data);
	conv_weight_gradient(unet, &output->conv, layout, &act, &dy);
	conv_bias_gradient(unet, &output->conv, layout, dy);
	conv_data_gradient(unet, &output->conv, layout, 0, &dy, output->dact->data,
		output->dact->width, false);
	group_norm_backward(&output->norm.norm,
		&(struct group_norm_backward){
			.layout = layout,
			.out_layout = layout,
			.n = unet->n,
			.sources = &h,
			.state = output->norm.state->data,
			.sums = unet->norm_sums->data,
			.dout = output->dact->data,
			.dsources = {output->in->grad->data},
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
