package webhook

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook/firewall"
)

// Request is what the user wrote on a VirtualMachine, checked. After ParseRequest nobody parses those annotations
// again.
type Request struct {
	// OptOut: the VM wants no floating address.
	OptOut bool
	// Require: what floatip cannot NAT shall be refused instead of warned about.
	Require bool
	// KeepUserData: the guest's user data shall stay as they are.
	KeepUserData bool
	// Pools to take from, at most one of each family; empty for no wish.
	Pools []string
	// Addresses that are wanted exactly, at most one of each family; empty for no wish.
	Addresses []netip.Addr
	// Unknown are keys with floatip's prefix that floatip does not know, in order: misspelt ones, most likely.
	Unknown []string
	// Misplaced are keys that stand in the template of the VM's instances, where they have no effect, in order.
	Misplaced []string
}

// explicit reports whether the VM asks for something of its own.
func (r Request) explicit() bool { return len(r.Pools) > 0 || len(r.Addresses) > 0 }

var annotationsPath = field.NewPath("metadata", "annotations")

// userAnnotations are the keys with floatip's prefix that a user writes on a VirtualMachine.
var userAnnotations = []string{
	floatip.AnnotationRequest, floatip.AnnotationPool, floatip.AnnotationAllow, floatip.LabelEnabled,
	floatip.AnnotationRequire, floatip.AnnotationUserData,
}

// knownAnnotations are the keys with floatip's prefix that may stand on a VirtualMachine.
var knownAnnotations = slices.Concat(userAnnotations, []string{floatip.AnnotationAddress, floatip.AnnotationClaim})

// annotationPrefix is the prefix of all of floatip's keys.
const annotationPrefix = "floatip.io/"

// ParseRequest reads the user's annotations of a VirtualMachine. All that is wrong is reported together, each with
// the key it concerns.
func ParseRequest(annotations map[string]string) (Request, field.ErrorList) {
	var r Request
	var errs field.ErrorList
	enabled := parseBool(annotations, floatip.LabelEnabled, true, &errs)
	r.OptOut = !enabled
	r.Require = parseBool(annotations, floatip.AnnotationRequire, false, &errs)
	r.KeepUserData = !parseBool(annotations, floatip.AnnotationUserData, true, &errs)
	r.Pools = parsePools(annotations, &errs)
	r.Addresses = parseAddresses(annotations, &errs)
	checkAllow(annotations, &errs)
	for key := range annotations {
		if strings.HasPrefix(key, annotationPrefix) && !slices.Contains(knownAnnotations, key) {
			r.Unknown = append(r.Unknown, key)
		}
	}
	slices.Sort(r.Unknown)
	return r, errs
}

func parseBool(annotations map[string]string, key string, otherwise bool, errs *field.ErrorList) bool {
	switch value, present := annotations[key]; {
	case !present:
		return otherwise
	case value == "true":
		return true
	case value == "false":
		return false
	default:
		*errs = append(*errs, field.NotSupported(annotationsPath.Key(key), value, []string{"true", "false"}))
		return otherwise
	}
}

func parsePools(annotations map[string]string, errs *field.ErrorList) []string {
	value, present := annotations[floatip.AnnotationPool]
	if !present {
		return nil
	}
	path := annotationsPath.Key(floatip.AnnotationPool)
	names := strings.Split(value, ",")
	for _, name := range names {
		if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
			*errs = append(*errs, field.Invalid(path, value, fmt.Sprintf("%q is not the name of a FloatingIPPool: %s", name, problems[0])))
			return nil
		}
	}
	if len(names) > 2 || len(names) == 2 && names[0] == names[1] {
		*errs = append(*errs, field.Invalid(path, value, "name one pool, or one IPv4 and one IPv6 pool: \"a,b\""))
		return nil
	}
	return names
}

func parseAddresses(annotations map[string]string, errs *field.ErrorList) []netip.Addr {
	value, present := annotations[floatip.AnnotationRequest]
	if !present {
		return nil
	}
	addresses, err := ParseAddresses(value)
	if err != nil {
		*errs = append(*errs, field.Invalid(annotationsPath.Key(floatip.AnnotationRequest), value, err.Error()))
	}
	return addresses
}

// checkAllow reports an allow list that cannot be read. Who is admitted is decided anew for each pod, since the list may
// change at any time.
func checkAllow(annotations map[string]string, errs *field.ErrorList) {
	if _, err := firewall.AllowOf(annotations); err != nil {
		value := annotations[floatip.AnnotationAllow]
		*errs = append(*errs, field.Invalid(annotationsPath.Key(floatip.AnnotationAllow), value, err.Error()))
	}
}

// ParseAddresses reads one address, or one IPv4 and one IPv6 address separated by a comma, and returns IPv4 first.
func ParseAddresses(value string) ([]netip.Addr, error) {
	var addresses []netip.Addr
	for _, text := range strings.Split(value, ",") {
		address, err := ipam.ParseAddress(text)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, address)
	}
	if len(addresses) > 2 || len(addresses) == 2 && addresses[0].Is4() == addresses[1].Is4() {
		return nil, fmt.Errorf("%q: ask for one address, or for one IPv4 and one IPv6 address", value)
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	return addresses, nil
}

// FormatAddresses is the inverse of ParseAddresses: the canonical text of the annotation floatip.io/address.
func FormatAddresses(addresses []netip.Addr) string {
	texts := make([]string, len(addresses))
	for i, a := range addresses {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}
