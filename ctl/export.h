/* A diffusers folder from a checkpoint: its configuration files as JSON. Pure. */
#pragma once

#include "proto/json.h"
#include "store/checkpoint.h"

/* New references; NULL when memory is short or a list in the configuration is broken. */
json_t *export_unet_config(const struct checkpoint_info *info);
json_t *export_scheduler_config(const struct checkpoint_info *info);
json_t *export_model_index(void);
/* num_class_embeds; 0 for a model without classes. */
uint32_t export_class_count(const struct checkpoint_info *info);
