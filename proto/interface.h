/* What the varlink service says about itself (org.varlink.service): the interface's own text is
 * proto/io.ckptd.Training.varlink, built into the program. */
#pragma once

#define PROTO_INTERFACE "io.ckptd.Training"
#define PROTO_VENDOR "ckptd"
#define PROTO_PRODUCT "ckptd image diffusion trainer"
#define PROTO_URL "" /* none: the interface is in the program */

extern const char proto_version[];
extern const char proto_interface_description[];
