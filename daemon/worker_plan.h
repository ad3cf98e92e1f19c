/* From the configuration to what the training code takes: the model and its tensors, the data, the
 * parameters of a step. One place, so that all roles mean the same net. */
#pragma once

#include "base/config.h"
#include "base/tensor_table.h"
#include "daemon/data/data.h"
#include "daemon/diffusion/schedule.h"
#include "daemon/model/unet.h"
#include "daemon/train/step.h"

#include <stdint.h>

struct model {
	struct unet_config config;
	struct tensor_table table; /* owned */
	struct digest digest;      /* of the table */
};

/* class_count: of the data; the model has one more, the null class. -EINVAL names the key. */
int model_init(
	struct model *model, const struct config *config, uint32_t class_count, struct error *err);
void model_fini(struct model *model);

/* The classes that the data has by configuration: 0 without labels, else asked of the data set
 * under run_fd. Opens it only when it must. */
int plan_class_count(
	const struct config *config, int run_fd, uint32_t *ret_count, struct error *err);

/* Builds the packed cache when it is missing (prepare only). context: of report and confine. */
int plan_prepare_data(const struct config *config, int run_fd, _Atomic uint64_t *moves,
	data_report *report, data_confine *confine, void *context, struct error *err);
int plan_open_data(const struct config *config, int run_fd, struct data *ret, struct error *err);

int plan_schedule(const struct config *config, struct schedule *ret, struct error *err);
struct train_params plan_params(const struct config *config);
