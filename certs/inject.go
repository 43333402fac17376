package certs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// publish writes bundle into every webhook of the two configurations that has another one.
func (s *Source) publish(ctx context.Context, bundle []byte) error {
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{}
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	return errors.Join(
		s.inject(ctx, mutating, bundle, func() []hook { return mutatingHooks(mutating) }),
		s.inject(ctx, validating, bundle, func() []hook { return validatingHooks(validating) }),
	)
}

// hook is what both kinds of configuration have in common.
type hook struct {
	name     string
	caBundle []byte
}

func mutatingHooks(c *admissionregistrationv1.MutatingWebhookConfiguration) []hook {
	hooks := make([]hook, len(c.Webhooks))
	for i, w := range c.Webhooks {
		hooks[i] = hook{w.Name, w.ClientConfig.CABundle}
	}
	return hooks
}

func validatingHooks(c *admissionregistrationv1.ValidatingWebhookConfiguration) []hook {
	hooks := make([]hook, len(c.Webhooks))
	for i, w := range c.Webhooks {
		hooks[i] = hook{w.Name, w.ClientConfig.CABundle}
	}
	return hooks
}

func (s *Source) inject(ctx context.Context, object client.Object, bundle []byte, hooks func() []hook) error {
	object.SetName(s.Configurations)
	if err := s.Reader.Get(ctx, types.NamespacedName{Name: s.Configurations}, object); err != nil {
		return fmt.Errorf("read %T %s, which the manifests install: %w", object, s.Configurations, err)
	}
	ops := injectOperations(hooks(), bundle)
	if len(ops) == 0 {
		return nil
	}
	patch, err := json.Marshal(ops)
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	err = s.Writer.Patch(ctx, object, client.RawPatch(types.JSONPatchType, patch), client.FieldOwner(FieldManager))
	if err == nil {
		s.Log.Info("wrote caBundle", "configuration", s.Configurations, "kind", fmt.Sprintf("%T", object), "webhooks", len(ops)/2)
	}
	return wrap(err, "write caBundle of %T %s", object, s.Configurations)
}

// operation is one of RFC 6902.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// injectOperations sets the bundle of every hook that has another one. Each change is bound to the hook's name, since
// the list may have been reordered meanwhile.
func injectOperations(hooks []hook, bundle []byte) []operation {
	var ops []operation
	for i, h := range hooks {
		if bytes.Equal(h.caBundle, bundle) {
			continue
		}
		at := fmt.Sprintf("/webhooks/%d", i)
		ops = append(ops,
			operation{"test", at + "/name", h.name},
			operation{"add", at + "/clientConfig/caBundle", bundle})
	}
	return ops
}
