/* ResnetBlock2D: y = conv2(silu(norm2(h))) + shortcut(x), h = conv1(silu(norm1(x))) + t, where t is
 * the projected time embedding and x may be a concatenation. The 1x1 shortcut runs as further taps
 * of conv2 over the raw sources, so neither x nor its normed form is ever copied together. */
#include "daemon/model/layers.h"

static void plan(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct resnet_layer *resnet = &layer->resnet;
	const struct layout *layout = resnet->out->layout;
	struct plan *memory = &unet->plan;
	for (uint32_t i = 0; i < resnet->in_count; i++)
		plan_use(resnet->in[i]->value, step);
	uint32_t in_width = resnet->norm1.norm.width, channels = resnet->out->value->channels;
	resnet->act1 = plan_wide_tensor(memory, layout, in_width, in_width);
	resnet->hidden = plan_tensor(memory, layout, channels);
	resnet->act2 = plan_tensor(memory, layout, channels);
	plan_use(resnet->act1, step);
	plan_use(resnet->hidden, step);
	plan_use(resnet->act2, step);
	plan_use(resnet->out->value, step);
}

static void plan_backward(struct unet *unet, struct layer *layer, uint32_t step)
{
	struct resnet_layer *resnet = &layer->resnet;
	const struct layout *layout = resnet->out->layout;
	struct plan *memory = &unet->plan;
	uint32_t in_width = resnet->norm1.norm.width, channels = resnet->out->value->channels;
	for (uint32_t i = 0; i < resnet->in_count; i++) {
		plan_use(resnet->in[i]->value, step);
		resnet->accumulate[i] = feature_claim_grad(unet, resnet->in[i], step);
	}
	resnet->back_act1 = plan_wide_tensor(memory, layout, in_width, in_width);
	resnet->dact1 = plan_wide_tensor(memory, layout, in_width, in_width);
	resnet->back_act2 = plan_tensor(memory, layout, channels);
	resnet->dact2 = plan_tensor(memory, layout, channels);
	plan_use(resnet->back_act1, step);
	plan_use(resnet->dact1, step);
	plan_use(resnet->back_act2, step);
	plan_use(resnet->dact2, step);
	plan_use(resnet->hidden, step);
	plan_use(resnet->out->grad, step);
}

static void load(struct unet *unet, struct layer *layer, const float *section)
{
	struct resnet_layer *resnet = &layer->resnet;
	norm_params_load(&resnet->norm1, section);
	conv_params_load(unet, &resnet->conv1, section);
	linear_params_load(&resnet->time_proj, section);
	norm_params_load(&resnet->norm2, section);
	conv_params_load(unet, &resnet->conv2, section);
	if (resnet->has_shortcut)
		conv_params_load(unet, &resnet->shortcut, section);
}

static void forward(struct unet *unet, struct layer *layer)
{
	struct resnet_layer *resnet = &layer->resnet;
	const struct layout *layout = resnet->out->layout;
	const float *x[SPANS_MAX] = {0};
	for (uint32_t i = 0; i < resnet->in_count; i++)
		x[i] = resnet->in[i]->value->data;
	float *act1 = resnet->act1->data, *act2 = resnet->act2->data;
	float *hidden = resnet->hidden->data, *out = resnet->out->value->data;
	uint32_t width = resnet->out->value->width;

	group_norm_forward(
		&resnet->norm1.norm, layout, unet->n, x, resnet->norm1.state->data, layout, act1);
	struct conv_call conv1 = {
		.layout = layout,
		.n = unet->n,
		.out = hidden,
		.out_width = width,
		.bias = {resnet->conv1.bias->data},
		.per_image = unet->time_proj->data + resnet->time_column,
		.per_image_stride = unet->time_proj_stride,
	};
	conv_add_taps(&resnet->conv1.conv, layout, 0, (const float *[]){act1}, &conv1);
	conv_run(unet, &conv1);

	group_norm_forward(&resnet->norm2.norm, layout, unet->n, (const float *[]){hidden},
		resnet->norm2.state->data, layout, act2);
	struct conv_call conv2 = {
		.layout = layout,
		.n = unet->n,
		.out = out,
		.out_width = width,
		.bias = {resnet->conv2.bias->data},
	};
	conv_add_taps(&resnet->conv2.conv, layout, 0, (const float *[]){act2}, &conv2);
	if (resnet->has_shortcut) {
		conv_add_taps(&resnet->shortcut.conv, layout, 0, x, &conv2);
		conv2.bias[1] = resnet->shortcut.bias->data;
	} else {
		conv2.residual = x[0];
	}
	conv_run(unet, &conv2);
}

/* From dy: gradients of conv2, shortcut, norm2; leaves dh in dact2. */
static void backward_second(struct unet *unet, struct resnet_layer *resnet, const float *const *x)
{
	const struct layout *layout = resnet->out->layout;
	const float *hidden = resnet->hidden->data, *dy = resnet->out->grad->data;
	float *act2 = resnet->back_act2->data, *dact2 = resnet->dact2->data;
	group_norm_apply(&resnet->norm2.norm, layout, unet->n, &hidden, resnet->norm2.state->data,
		layout, act2);
	conv_weight_gradient(unet, &resnet->conv2, layout, (const float *[]){act2}, &dy);
	conv_bias_gradient(unet, &resnet->conv2, layout, dy);
	if (resnet->has_shortcut) {
		conv_weight_gradient(unet, &resnet->shortcut, layout, x, &dy);
		sums_over_rows(unet->n, unet->image_sums->data, resnet->conv2.conv.out_channels,
			resnet->conv2.conv.out_channels, unet->grads + resnet->shortcut.bias_at,
			unet->accumulate);
	}
	conv_data_gradient(
		unet, &resnet->conv2, layout, 0, &dy, dact2, resnet->dact2->width, false);
	group_norm_backward(&resnet->norm2.norm,
		&(struct group_norm_backward){
			.layout = layout,
			.out_layout = layout,
			.n = unet->n,
			.sources = &hidden,
			.state = resnet->norm2.state->data,
			.sums = unet->norm_sums->data,
			.dout = dact2,
			.dsources = {dact2},
			.dweight = unet->grads + resnet->norm2.weight_at,
			.dbias = unet->grads + resnet->norm2.bias_at,
			.accumulate_params = unet->accumulate,
		});
}

/* The sums of dh over an image's positions are the gradient of its projected time embedding. */
static void backward_time(struct unet *unet, struct resnet_layer *resnet)
{
	uint32_t channels = resnet->conv1.conv.out_channels;
	const float *sums = unet->image_sums->data;
	for (uint32_t image = 0; image < unet->n; image++) {
		float *row = unet->dtime_proj->data + (size_t)image * unet->time_proj_stride +
			resnet->time_column;
		for (uint32_t c = 0; c < channels; c++)
			row[c] = sums[(size_t)image * channels + c];
	}
}

static void backward(struct unet *unet, struct layer *layer)
{
	struct resnet_layer *resnet = &layer->resnet;
	const struct layout *layout = resnet->out->layout;
	const float *x[SPANS_MAX] = {0}, *dy = resnet->out->grad->data;
	for (uint32_t i = 0; i < resnet->in_count; i++)
		x[i] = resnet->in[i]->value->data;
	backward_second(unet, resnet, x);

	const float *dhidden = resnet->dact2->data;
	float *act1 = resnet->back_act1->data, *dact1 = resnet->dact1->data;
	conv_bias_gradient(unet, &resnet->conv1, layout, dhidden);
	backward_time(unet, resnet);
	group_norm_apply(
		&resnet->norm1.norm, layout, unet->n, x, resnet->norm1.state->data, layout, act1);
	conv_weight_gradient(unet, &resnet->conv1, layout, (const float *[]){act1}, &dhidden);
	conv_data_gradient(
		unet, &resnet->conv1, layout, 0, &dhidden, dact1, resnet->dact1->width, false);

	struct group_norm_backward norm1 = {
		.layout = layout,
		.out_layout = layout,
		.n = unet->n,
		.sources = x,
		.state = resnet->norm1.state->data,
		.sums = unet->norm_sums->data,
		.dout = dact1,
		.residual = resnet->has_shortcut ? NULL : dy,
		.dweight = unet->grads + resnet->norm1.weight_at,
		.dbias = unet->grads + resnet->norm1.bias_at,
		.accumulate_params = unet->accumulate,
	};
	for (uint32_t i = 0; i < resnet->in_count; i++) {
		struct tensor *dx = resnet->in[i]->grad;
		if (resnet->has_shortcut)
			conv_data_gradient(unet, &resnet->shortcut, layout, i, &dy, dx->data,
				dx->width, resnet->accumulate[i]);
		norm1.dsources[i] = dx->data;
		norm1.accumulate[i] = resnet->has_shortcut || resnet->accumulate[i];
	}
	group_norm_backward(&resnet->norm1.norm, &norm1);
}

const struct layer_kind layer_resnet = {
	.name = "resnet",
	.plan = plan,
	.plan_backward = plan_backward,
	.load = load,
	.forward = forward,
	.backward = backward,
};
