{{- define "medianest.labels" -}}
app.kubernetes.io/name: medianest-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
{{- define "medianest.selector" -}}
app.kubernetes.io/name: medianest-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{/* What the controller may do in a namespace that it watches. It grants its databases' pods what Patroni needs, so it must hold that itself. */}}
{{- define "medianest.rules" -}}
- apiGroups: [medianest.io]
  resources: [medianestdatabases]
  verbs: [get, list, watch]
- apiGroups: [medianest.io]
  resources: [medianestbackups]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [medianest.io]
  resources: [medianestdatabases/status, medianestbackups/status]
  verbs: [get, patch]
- apiGroups: [""]
  resources: [configmaps, secrets, services, serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, update, delete]
- apiGroups: [""]
  resources: [endpoints]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs, cronjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch]
{{- end }}
