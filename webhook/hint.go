package webhook

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"

	"gomodules.xyz/jsonpatch/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/cloudinit"
	"floatip.io/floatip/webhook/kubevirt"
)

// HintFile is the file in the guest that holds its floating address.
const HintFile = "/etc/floatip/floating-ip"

// hinted is the VM whose guest is told its address.
type hinted struct {
	owner   floatip.Owner
	address string
	dryRun  bool
}

// giveHints adds to d what tells the guest its floating address. A hint that cannot be given is a warning, never a
// refusal: the address works without it. The VM itself is not touched, only its VMI, so that nothing drifts from what
// people have in their repositories.
func (h *Hooks) giveHints(ctx context.Context, d *Decision, spec kubevirt.VMISpec, vm hinted) {
	d.Patches = append(d.Patches, assetHint(spec, vm.address)...)
	hint := userDataHint(spec, vm.address)
	if !hint.found {
		return
	}
	if wish := h.keepsUserData(ctx, vm.owner); wish != "" {
		d.Hint = hintSkipped + wish
		return
	}
	switch {
	case hint.skipped != "":
		text := "the guest gets no file " + HintFile + ": its user data are left alone, since " + hint.skipped
		d.Hint = hintSkipped + hint.skipped
		d.Warnings = append(d.Warnings, "floatip: "+text)
		if !vm.dryRun {
			h.Events.Warn(vm.owner, EventHintSkipped, text)
		}
	case len(hint.patch) > 0:
		d.Hint = "user data extended"
		d.Patches = append(d.Patches, hint.patch...)
	default:
		d.Hint = "user data have the file already"
	}
}

// hintSkipped begins the audit annotation "hint" of user data that stay as they are.
const hintSkipped = "user data left alone: "

// keepsUserData returns why the VM itself wants its user data left alone, or nothing. Its annotations say so, which do
// not reach the VMI. A wish that cannot be read is taken for a no: the user data are the VM's, the hint is a courtesy.
func (h *Hooks) keepsUserData(ctx context.Context, owner floatip.Owner) string {
	annotations, err := h.Cluster.VMAnnotations(ctx, owner)
	if err != nil && !apierrors.IsNotFound(err) {
		return "the VM's annotations cannot be read"
	}
	if value, present := annotations[floatip.AnnotationUserData]; present && value != "true" {
		return "the VM says " + floatip.AnnotationUserData + ": " + value
	}
	return ""
}

// assetPrefix marks floatip's hint. cloud-init knows guests of some clouds by their asset tag (ds-identify), none of
// which begins like this.
const assetPrefix = "floatip="

// assetHint tells the guest its floating address by the chassis asset tag (SMBIOS type 3), which every operating system
// shows, unless the VM sets one itself.
func assetHint(spec kubevirt.VMISpec, address string) []jsonpatch.Operation {
	switch chassis := spec.Domain.Chassis; {
	case chassis == nil:
		asset := map[string]string{"asset": assetPrefix + address}
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/spec/domain/chassis", asset)}
	case chassis.Asset == "":
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/spec/domain/chassis/asset", assetPrefix+address)}
	}
	return nil
}

// userDataPlan is what to do about a VMI's user data. Its zero value stands for a VMI without any.
type userDataPlan struct {
	// found: the VMI has a volume of user data.
	found bool
	// patch replaces the one field that holds them; empty if they stay as they are.
	patch []jsonpatch.Operation
	// skipped is why they are left alone.
	skipped string
}

// userDataHint plans to add HintFile to the user data of the VMI's first cloud-init volume, the only one that KubeVirt
// reads (pkg/cloud-init/cloud-init.go). It never adds a volume: by a new one, images would take themselves for a new
// machine and change their host keys.
func userDataHint(spec kubevirt.VMISpec, address string) userDataPlan {
	for i, v := range spec.Volumes {
		path := []string{"spec", "volumes", strconv.Itoa(i)}
		switch {
		case v.CloudInitNoCloud != nil:
			return planUserData(*v.CloudInitNoCloud, append(path, "cloudInitNoCloud"), address)
		case v.CloudInitConfigDrive != nil:
			return planUserData(*v.CloudInitConfigDrive, append(path, "cloudInitConfigDrive"), address)
		}
	}
	return userDataPlan{}
}

// planUserData keeps the kind of the source: plain text stays plain, base64 stays base64. User data that do not exist
// beside network data become plain.
func planUserData(source kubevirt.CloudInit, path []string, address string) userDataPlan {
	switch {
	case source.UserDataSecretRef != nil:
		return userDataPlan{found: true, skipped: "they are in a Secret"}
	case source.UserData != "" && source.UserDataBase64 != "":
		return userDataPlan{found: true, skipped: "there are two of them"}
	case source.UserDataBase64 != "":
		raw, err := base64.StdEncoding.DecodeString(source.UserDataBase64)
		if err != nil {
			return userDataPlan{found: true, skipped: fmt.Sprintf("they are not base64: %v", err)}
		}
		plan, merged := mergeUserData(raw, address)
		return plan.write(append(path, "userDataBase64"), raw, merged, base64.StdEncoding.EncodeToString)
	}
	raw := []byte(source.UserData)
	plan, merged := mergeUserData(raw, address)
	return plan.write(append(path, "userData"), raw, merged, func(b []byte) string { return string(b) })
}

func mergeUserData(raw []byte, address string) (userDataPlan, []byte) {
	merged, skipped := cloudinit.Merge(raw, cloudinit.File{Path: HintFile, Content: address + "\n"})
	return userDataPlan{found: true, skipped: string(skipped)}, merged
}

// write adds the operation that replaces the field at path, if merged differs from before.
func (p userDataPlan) write(path []string, before, merged []byte, encode func([]byte) string) userDataPlan {
	if string(before) != string(merged) {
		p.patch = []jsonpatch.Operation{jsonpatch.NewOperation("add", pointer(path...), encode(merged))}
	}
	return p
}
