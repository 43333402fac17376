package webhook

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook/kubevirt"
)

// Paths at which the hooks are served. The webhook configurations name them.
const (
	PathVMCreate   = "/mutate-vm-create"
	PathVMCommit   = "/validate-vm-create"
	PathVMUpdate   = "/mutate-vm-update"
	PathVMICreate  = "/mutate-vmi-create"
	PathPodCreate  = "/mutate-pod-create"
	PathPoolChange = "/validate-pool"
)

// Ledger is what the hooks need of *ipam.Ledger.
type Ledger interface {
	Reserve(ctx context.Context, r ipam.Request) (ipam.Offer, error)
	Withdraw(claim floatip.Claim)
	Commit(ctx context.Context, claim floatip.Claim, owner floatip.Owner, addresses []netip.Addr, cause ipam.Cause) ([]ipam.Allocation, error)
	ByClaim(claim floatip.Claim) []ipam.Allocation
	Keeps(owner floatip.Owner) bool
	ByOwner(uid string) []ipam.Allocation
	ByName(namespace, name string) []ipam.Allocation
	Release(ctx context.Context, uid string, cause ipam.Cause) ([]ipam.Allocation, error)
	CanChange(after ipam.Pool) error
	CanDelete(name string) error
}

// Cluster is what the hooks need to know of the cluster. A not-found error is what the API server would answer.
type Cluster interface {
	// NamespaceLabels returns the labels of a namespace.
	NamespaceLabels(ctx context.Context, namespace string) (map[string]string, error)
	// VMAnnotations returns the annotations of the VirtualMachine with the owner's name and UID.
	VMAnnotations(ctx context.Context, owner floatip.Owner) (map[string]string, error)
	// VMExists reports whether a VirtualMachine of that name is stored. Yes is certain, no may be a moment old.
	VMExists(ctx context.Context, namespace, name string) (bool, error)
	// Carrier says what is left in the API server, at this moment, of the VirtualMachine with the owner's name and UID:
	// CarrierVM, its instance, or a pod that translates its addresses. It is empty if nothing is.
	Carrier(ctx context.Context, owner floatip.Owner) (string, error)
	// Announcer says which node has answered for one of the addresses on behalf of the VM with that UID, and has not said
	// that it stopped. It is empty if there is none.
	Announcer(ctx context.Context, uid string, addresses []netip.Addr) (string, error)
	// VMI returns the VirtualMachineInstance with that name and UID.
	VMI(ctx context.Context, namespace, name string, uid types.UID) (*kubevirt.VirtualMachineInstance, error)
	// The rest is what FirewallOf and DeliveryOf need.
	FirewallReader
	DeliveryReader
	PodSecurityReader
}

// CarrierVM is what Cluster.Carrier answers for a VirtualMachine that is stored.
const CarrierVM = "VM"

// Events tells people what no warning of an API answer would: most objects are made by controllers.
type Events interface {
	// Warn tells the owner of a VM.
	Warn(owner floatip.Owner, reason, text string)
	// WarnNamespace tells the people of a namespace, where no VM exists.
	WarnNamespace(namespace, reason, text string)
}

// Reasons of events.
const (
	// EventUnnatable: the network binding of the VM leaves nothing to translate.
	EventUnnatable = "FloatingIPUnsupportedBinding"
	// EventForbidden: the Pod Security level of the namespace, or the API server's own, forbids the sidecar.
	EventForbidden = "FloatingIPForbiddenSidecar"
	// EventHintSkipped: the guest's user data are left alone, so the guest has no file with its address.
	EventHintSkipped = "FloatingIPHintSkipped"
)

// Options are what the administrator says.
type Options struct {
	// KubeVirtNamespace is where KubeVirt's service accounts live.
	KubeVirtNamespace string
	// SidecarImage is the image of the injected container.
	SidecarImage string
	// ClusterNetworks are the networks of pods, services and nodes.
	ClusterNetworks []netip.Prefix
}

// Hooks answers admission requests.
type Hooks struct {
	Options Options
	Ledger  Ledger
	Cluster Cluster
	Events  Events
	Metrics *Metrics
	// Now defaults to time.Now.
	Now func() time.Time

	sidecar  *rendered
	patience time.Duration // withdrawalPatience; tests take less
}

// Server is what Register needs of controller-runtime's webhook server.
type Server interface {
	Register(path string, hook http.Handler)
}

// Register serves all hooks behind the gate.
func (h *Hooks) Register(server Server, gate *Gate) {
	for path, handler := range h.Handlers() {
		server.Register(path, gate.Wrap(newEndpoint(handler)))
	}
}

// Handlers returns the hooks by path.
func (h *Hooks) Handlers() map[string]admission.Handler {
	if h.Now == nil {
		h.Now = time.Now
	}
	if h.patience == 0 {
		h.patience = withdrawalPatience
	}
	h.sidecar = render(h.Options.SidecarImage)
	return map[string]admission.Handler{
		PathVMCreate:   handler("vm-create", h.Metrics, h.telling(h.createVM)),
		PathVMCommit:   handler("vm-commit", h.Metrics, h.telling(h.commitVM)),
		PathVMUpdate:   handler("vm-update", h.Metrics, h.telling(h.updateVM)),
		PathVMICreate:  handler("vmi-create", h.Metrics, h.createVMI),
		PathPodCreate:  handler("pod-create", h.Metrics, h.createPod),
		PathPoolChange: handler("pool", h.Metrics, h.changePool),
	}
}

func isDryRun(req admission.Request) bool { return req.DryRun != nil && *req.DryRun }

// byKubeVirt reports whether one of KubeVirt's own accounts made the request.
func (h *Hooks) byKubeVirt(req admission.Request) bool {
	return slices.Contains(kubevirt.Users(h.Options.KubeVirtNamespace), req.UserInfo.Username)
}

func causeOf(req admission.Request) ipam.Cause {
	return ipam.Cause{User: req.UserInfo.Username, RequestUID: string(req.UID)}
}

// ownerOf returns the VM in metadata; the namespace is the request's, which the API server checked.
func ownerOf(req admission.Request, m metadata) floatip.Owner {
	return floatip.Owner{Namespace: req.Namespace, Name: m.Name, UID: string(m.UID)}
}

// heldBy returns what the ledger has for a VM as an owner reference names it. Who writes such a reference himself may
// know the UID of another tenant's VM: namespace and name must be those of the holder too.
func (h *Hooks) heldBy(ctx context.Context, req admission.Request, vm floatip.Owner) ([]ipam.Allocation, error) {
	lines := slices.DeleteFunc(h.Ledger.ByOwner(vm.UID), func(line ipam.Allocation) bool { return line.Owner != vm })
	if len(lines) > 0 {
		return lines, nil
	}
	return h.takeKept(ctx, req, vm)
}

// takeKept gives the VM what the ledger has promised to its claim and kept: floatip ended, or its disk failed, after it had
// admitted the VM. The controller does the same when it sees the VM; its instance, and the pod of that, may come first.
func (h *Hooks) takeKept(ctx context.Context, req admission.Request, vm floatip.Owner) ([]ipam.Allocation, error) {
	if isDryRun(req) || !h.Ledger.Keeps(vm) {
		return nil, nil
	}
	annotations, err := h.annotationsOf(ctx, vm)
	if err != nil {
		return nil, err
	}
	claim, err := floatip.ParseClaim(annotations[floatip.AnnotationClaim])
	if err != nil {
		return nil, nil
	}
	if lines := h.Ledger.ByClaim(claim); len(lines) == 0 || !lines[0].Awaits(vm) {
		return nil, nil
	}
	return h.Ledger.Commit(ctx, claim, vm, nil, causeOf(req))
}

// annotationsOf returns the annotations of a VM, none if it is gone.
func (h *Hooks) annotationsOf(ctx context.Context, vm floatip.Owner) (map[string]string, error) {
	annotations, err := h.Cluster.VMAnnotations(ctx, vm)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("annotations of VM %s: %w", vm, err)
	}
	return annotations, nil
}

// holding sums up lines of the ledger that belong to one VM.
type holding struct {
	addresses []netip.Addr // IPv4 first
	pools     []string     // one for each address
	claim     floatip.Claim
}

func holdingOf(lines []ipam.Allocation) holding {
	lines = slices.Clone(lines)
	slices.SortFunc(lines, func(a, b ipam.Allocation) int { return a.Address.Compare(b.Address) })
	var h holding
	for _, line := range lines {
		h.addresses = append(h.addresses, line.Address)
		h.pools = append(h.pools, line.Pool)
		h.claim = line.Claim
	}
	return h
}

func (h holding) address() string { return FormatAddresses(h.addresses) }

// poolOf returns the pool of each address.
func (h holding) poolOf() map[netip.Addr]string {
	pools := map[netip.Addr]string{}
	for i, a := range h.addresses {
		pools[a] = h.pools[i]
	}
	return pools
}

func (h holding) pool() string { return strings.Join(h.pools, ",") }

// claimText is empty for an allocation that was adopted from an object without a claim.
func (h holding) claimText() string {
	if h.claim.IsZero() {
		return ""
	}
	return h.claim.String()
}

// decision starts a Decision about what is held.
func (h holding) decision(action Action, reason string) Decision {
	return Decision{Action: action, Reason: reason, Address: h.address(), Pool: h.pool(), Claim: h.claimText()}
}

// OwnKeys returns the annotations that floatip writes on a VM which holds lines.
func OwnKeys(lines []ipam.Allocation) map[string]string {
	h := holdingOf(lines)
	keys := map[string]string{floatip.AnnotationAddress: h.address()}
	if claim := h.claimText(); claim != "" {
		keys[floatip.AnnotationClaim] = claim
	}
	return keys
}
