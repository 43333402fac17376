package floatip

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"
)

// Keys of labels and annotations. All of them share the prefix "floatip.io/", the project's API group.
const (
	// LabelEnabled opts a namespace in when its value is "true". As an annotation of a VirtualMachine with the value
	// "false" it opts that VM out again.
	LabelEnabled = "floatip.io/enabled"

	// AnnotationPool is written by the user on a VirtualMachine: the name of the FloatingIPPool to take the address
	// from; "a,b" names one IPv4 and one IPv6 pool.
	AnnotationPool = "floatip.io/pool"

	// AnnotationRequest is written by the user on a VirtualMachine: exactly this address, or one IPv4 and one IPv6
	// address separated by a comma.
	AnnotationRequest = "floatip.io/request"

	// AnnotationRequire is written by the user on a VirtualMachine. "true" turns what would be a warning (a network
	// binding that floatip cannot NAT) into a refusal.
	AnnotationRequire = "floatip.io/require"

	// AnnotationAddress is written by floatip alone: what the VirtualMachine holds, for instance "192.168.100.50" or
	// "192.168.100.50,2001:db8::50". The same key is carried to the VirtualMachineInstance and the pod.
	AnnotationAddress = "floatip.io/address"

	// AnnotationClaim is written by floatip alone: the Claim of the VirtualMachine, 32 hexadecimal digits.
	AnnotationClaim = "floatip.io/claim"

	// AnnotationNAT is written by floatip alone, on virt-launcher pods: a PodNAT in JSON. The sidecar reads it through
	// a downward-API file.
	AnnotationNAT = "floatip.io/nat"

	// AnnotationPodSecurity is written by floatip on virt-launcher pods that have no sidecar since the API server refused one:
	// the Pod Security level that it enforces where the namespace has no label, such as "baseline".
	AnnotationPodSecurity = "floatip.io/pod-security"

	// NodeLabelPoolPrefix and the name of a pool make the label with the value "true" that the node agent puts on a
	// node which carries the provider network of the pool.
	NodeLabelPoolPrefix = "pool.floatip.io/"
)

// AnnotationProviderAddresses is written by the node agent on its Node: the node's own addresses, on whichever of its NICs,
// since a pool over their network may come at any time. At most MaxProviderAddresses, separated by commas. They are never
// handed out.
const AnnotationProviderAddresses = "floatip.io/provider-addresses"

// MaxProviderAddresses is how many addresses of one node are withheld at most: no node may empty a pool by its word.
const MaxProviderAddresses = 64

// AnnotationAgent is written by the node agent on its Node: a NodeAgent in JSON.
const AnnotationAgent = "floatip.io/agent"

// NodeAgent is what a node agent tells the agents of other nodes about itself.
type NodeAgent struct {
	// MACs are the Ethernet addresses of the node's provider NICs, in the form "02:00:00:00:00:01". What they announce is
	// no conflict, and a move if the address migrates there.
	MACs []string `json:"macs,omitempty"`
	// Address is where the agent listens for those of other nodes, for instance "10.0.0.11:9448".
	Address string `json:"address,omitempty"`
	// Key is the SHA-256 of the agent's public key, in Base64. Another start of the agent has another one.
	Key string `json:"key,omitempty"`
}

// Reasons of a condition ConflictFree that is false. The node agent writes them, and the webhook acts on the first.
const (
	// ReasonAddressTaken: another host has the address. It is not used here before that is over.
	ReasonAddressTaken = "AddressTaken"
	// ReasonAddressContested: the address is in use here and another host claims it too. It is defended.
	ReasonAddressContested = "AddressContested"
)

// Names that the webhook writes into a virt-launcher pod and that the sidecar and the node agent rely on.
const (
	// SidecarContainer is the name of the injected native sidecar. KubeVirt reads a container named "volume*" as a
	// container disk (pkg/container-disk), so never that.
	SidecarContainer = "floatip-sidecar"

	// SocketVolume is the name of the emptyDir that only the sidecar mounts. The node agent finds it under the
	// kubelet's directory: pods/<pod UID>/volumes/kubernetes.io~empty-dir/<SocketVolume>.
	SocketVolume = "floatip-socket"

	// SocketFile is the name of the sidecar's unix socket in SocketVolume.
	SocketFile = "agent.sock"

	// NATVolume is the name of the downward-API volume that carries AnnotationNAT, and NATFile the name of the file
	// in it.
	NATVolume = "floatip-nat"
	NATFile   = "nat.json"
)

// Owner is the virtual machine that holds an address. The UID decides: two machines that had the same name one after
// the other are two owners.
type Owner struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

// String returns "namespace/name".
func (o Owner) String() string { return o.Namespace + "/" + o.Name }

// Claim is a 128-bit token that ties an object in the API server to its ledger entry before the object has a name or a
// UID. The zero Claim stands for none.
type Claim [16]byte

// NewClaim returns a fresh Claim that cannot be guessed: 48 bits of Unix time in milliseconds, so that claims grow with
// time and the ledger writes new ones side by side, and 80 random bits. It is laid out as a UUID of version 7 is (RFC
// 9562, section 5.7), with random bits for version and variant.
func NewClaim() Claim {
	var c Claim
	rand.Read(c[6:]) // never fails, crypto/rand
	now := uint64(time.Now().UnixMilli())
	binary.BigEndian.PutUint16(c[:2], uint16(now>>32))
	binary.BigEndian.PutUint32(c[2:6], uint32(now))
	return c
}

// ParseClaim parses the 32 hexadecimal digits that String writes.
func ParseClaim(s string) (Claim, error) {
	var c Claim
	if len(s) != hex.EncodedLen(len(c)) {
		return Claim{}, fmt.Errorf("claim %q: want %d hexadecimal digits, have %d characters", s, hex.EncodedLen(len(c)), len(s))
	}
	if _, err := hex.Decode(c[:], []byte(s)); err != nil {
		return Claim{}, fmt.Errorf("claim %q: %w", s, err)
	}
	return c, nil
}

// String returns 32 hexadecimal digits.
func (c Claim) String() string { return hex.EncodeToString(c[:]) }

// IsZero reports whether c is no claim at all.
func (c Claim) IsZero() bool { return c == Claim{} }

// MarshalText implements encoding.TextMarshaler.
func (c Claim) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Claim) UnmarshalText(text []byte) error {
	parsed, err := ParseClaim(string(text))
	if err == nil {
		*c = parsed
	}
	return err
}
