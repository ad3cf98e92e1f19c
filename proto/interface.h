/* What the varlink service says about itself: the .varlink files beside this one, built
 * into the program. */
#pragma once

#define PROTO_INTERFACE "io.ckptd.Training"
#define PROTO_VENDOR "ckptd"
#define PROTO_PRODUCT "ckptd image diffusion trainer"
#define PROTO_URL "" /* none: the interface is in the program */

extern const char proto_version[];
extern const char proto_interface_description[]; /* io.ckptd.Training */
extern const char proto_service_description[];   /* org.varlink.service */
