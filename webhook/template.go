package webhook

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"floatip.io/floatip"
)

// templatePath is where the annotations of a VM's instances stand: KubeVirt copies them to each VMI, and from there to its
// pods.
var templatePath = field.NewPath("spec", "template", "metadata", "annotations")

// templateAnnotations returns spec.template.metadata.annotations of the VM in raw, as far as there are any that can be
// read: what is no VM is KubeVirt's to refuse.
func templateAnnotations(raw []byte) map[string]string {
	value := raw
	for _, name := range []string{"spec", "template", "metadata", "annotations"} {
		part, sure := topLevel(value, name)
		if !sure {
			return decodeTemplate(raw)
		}
		if part == nil {
			return nil
		}
		value = part
	}
	var annotations map[string]string
	if decode(value, &annotations) != nil {
		return nil
	}
	return annotations
}

// decodeTemplate is the long way.
func decodeTemplate(raw []byte) map[string]string {
	var vm struct {
		Spec struct {
			Template struct {
				Metadata struct {
					Annotations map[string]string `json:"annotations"`
				} `json:"metadata"`
			} `json:"template"`
		} `json:"spec"`
	}
	if decode(raw, &vm) != nil {
		return nil
	}
	return vm.Spec.Template.Metadata.Annotations
}

// parseVM reads what the user wrote on the VirtualMachine in raw, whose metadata m is.
func parseVM(m metadata, raw []byte) (Request, field.ErrorList) {
	r, errs := ParseRequest(m.Annotations)
	return r, append(errs, r.heed(templateAnnotations(raw))...)
}

// heed takes what the template says: floatip.io/enabled: "false" opts out as it does on the VM itself, and besides keeps
// the hooks away from the VM's instances (matchConditions of vmi-create).
func (r *Request) heed(template map[string]string) (errs field.ErrorList) {
	switch value, present := template[floatip.LabelEnabled]; {
	case !present || value == "true":
	case value == "false":
		r.OptOut = true
	default:
		errs = field.ErrorList{field.NotSupported(templatePath.Key(floatip.LabelEnabled), value, []string{"true", "false"})}
	}
	for _, key := range userAnnotations {
		if _, present := template[key]; present && key != floatip.LabelEnabled {
			r.Misplaced = append(r.Misplaced, key)
		}
	}
	slices.Sort(r.Misplaced)
	return errs
}

// optsOut reports whether a VMI says that it carries no address. KubeVirt copied that from the VM's template.
func optsOut(annotations map[string]string) bool { return annotations[floatip.LabelEnabled] == "false" }
