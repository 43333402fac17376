package cluster

const auditPolicyFile = "audit-policy.yaml"

// auditPolicy notes every write to the objects that pass floatip's webhooks. The level Metadata suffices for the
// annotations that the API server adds about admission, such as mutation.webhook.admission.k8s.io/round_0_index_1,
// which names the webhook configuration and says whether it changed the object; the request level adds the patches. Of
// floatip's own accounts every call is noted, reads included: what they are granted is compared with it.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Request
  verbs: [create, update, patch, delete]
  resources:
  - group: kubevirt.io
    resources: [virtualmachines, virtualmachineinstances]
  - group: ""
    resources: [pods]
- level: Metadata
  verbs: [create, update, patch, delete]
  resources:
  - group: subresources.kubevirt.io
  - group: floatip.io
- level: Metadata
  userGroups: ["system:serviceaccounts:floatip-system"]
- level: None
`
